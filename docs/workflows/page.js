// What make.py does inside ComfyUI's page: arrange a graph, write it down, show all of it.
window.t2mv = {
  GAP: 28,
  TITLE: 30,

  // Columns of nodes from left to right, each in a group with a title; a column's note stands on top of it.
  // Nodes are taller in the new design than in the classic one: they get the height that both can live with.
  async arrange(layout, version) {
    const graph = window.app.graph
    const columns = layout.columns.map(column => {
      const nodes = column.nodes.map(id => graph.getNodeById(Number(id)))
      if (column.note) nodes.unshift(this.createNote(column.note))
      for (const node of nodes)
        node.setSize([column.width, node.type === 'MarkdownNote' ? column.note_height : node.computeSize()[1]])
      return { ...column, nodes }
    })
    await window.t2mvPage.settled()
    let x = 0
    for (const column of columns) {
      let y = 0
      for (const node of column.nodes) {
        const height = Math.max(node.size[1], node.computeSize()[1])
        node.setSize([column.width, height + (layout.room[node.id] ?? 0)])
        node.pos = [x, y]
        y += node.size[1] + this.TITLE + this.GAP
      }
      const group = new LiteGraph.LGraphGroup(column.title)
      group.pos = [x - 14, -this.TITLE - 50]
      group.size = [column.width + 28, y - this.GAP + 62]
      graph.add(group)
      x += column.width + 70
    }
    for (const node of graph._nodes) {
      this.showLinkedValues(node)
      for (const widget of node.widgets ?? [])
        if (widget.name === 'control_after_generate') widget.value = layout.after_run
      if (node.type.startsWith('T2MV')) Object.assign(node.properties, { cnr_id: 't2mv', ver: version })
      if (layout.models[node.id]) node.properties.models = layout.models[node.id]
    }
    await window.t2mvPage.settled()
  },

  // Boxes of linked inputs show what is linked, or nothing: a default that nobody reads could name a file of
  // this machine, which others then miss.
  showLinkedValues(node) {
    node.inputs.forEach((input, slot) => {
      const widget = input.widget && node.widgets.find(widget => widget.name === input.widget.name)
      const source = widget && node.getInputNode(slot)
      if (source?.type.startsWith('Primitive')) widget.value = source.widgets[0].value
      else if (source && widget.type === 'combo') widget.value = ''
    })
  },

  createNote(text) {
    const note = LiteGraph.createNode('MarkdownNote')
    note.title = 'Read me'
    window.app.graph.add(note)
    note.widgets[0].value = text
    return note
  },

  // The workflow that ComfyUI saves when somebody publishes a subgraph: one node and what is in it.
  blueprint({ name, description, aliases, nodes, inputs, outputs }) {
    const graph = window.app.graph
    const inside = nodes.map(id => graph.getNodeById(Number(id)))
    for (const node of [...graph._nodes]) if (!inside.includes(node)) graph.remove(node)
    for (const group of [...graph._groups]) graph.remove(group)
    const titles = Object.fromEntries(inside.map(node => [node.id, node.title]))
    const { subgraph, node } = graph.convertToSubgraph(new Set(inside)) // of copies, which have other ids
    const find = id => subgraph._nodes.find(node => node.title === titles[id])
    for (const slot of [...subgraph.inputs]) subgraph.removeInput(slot)
    for (const slot of [...subgraph.outputs]) subgraph.removeOutput(slot)
    for (const [id, widget, label] of inputs) {
      const inner = find(id)
      const input = inner.inputs.find(input => input.widget?.name === widget)
      subgraph.addInput(label, input.type).connect(input, inner)
    }
    for (const [id, slot, label] of outputs) {
      const output = find(id).outputs[slot]
      subgraph.addOutput(label, output.type).connect(output, find(id))
    }
    subgraph.name = node.title = name
    const written = node.serialize()
    const preview = '$$canvas-image-preview' // ComfyUI's name for the picture that a node shows
    written.properties.previewExposures = outputs
      .filter(([id]) => find(id).type === 'T2MVCreateContactSheet')
      .map(([id], index) => ({
        name: index ? `${preview}_${index}` : preview,
        sourceNodeId: String(find(id).id),
        sourcePreviewName: preview
      }))
    return JSON.stringify({
      revision: 0,
      last_node_id: node.id,
      last_link_id: 0,
      nodes: [written],
      links: [],
      version: 0.4,
      definitions: { subgraphs: [{ ...subgraph.asSerialisable(), category: 'T2MV' }] },
      extra: { BlueprintDescription: description, BlueprintSearchAliases: aliases }
    })
  },

  serialize() {
    const written = window.app.graph.serialize()
    written.extra = { ds: { scale: 0.7, offset: [60, 120] } }
    return JSON.stringify(written, null, 2)
  },

  // Seeds as they were when the pictures were made: after a run they may have changed.
  restoreSeeds(api) {
    for (const [id, { inputs }] of Object.entries(api)) {
      const widget = window.app.graph.getNodeById(Number(id)).widgets?.find(widget => widget.name === 'seed')
      if (widget && !Array.isArray(inputs.seed)) widget.value = inputs.seed
    }
  },

  // Left, top, width and height of everything, in the graph's units.
  bounds() {
    const boxes = window.app.graph._groups.map(group => [...group.pos, ...group.size])
    const left = Math.min(...boxes.map(box => box[0]))
    const top = Math.min(...boxes.map(box => box[1]))
    const right = Math.max(...boxes.map(box => box[0] + box[2]))
    const bottom = Math.max(...boxes.map(box => box[1] + box[3]))
    return [left, top, right - left, bottom - top]
  },

  show(scale, left, top) {
    const view = window.app.canvas.ds
    view.scale = scale
    view.offset = [left / scale - this.bounds()[0], top / scale - this.bounds()[1]]
    window.app.canvas.deselectAll?.()
    window.app.canvas.setDirty(true, true)
  },

  // A column of the graph, from its title on.
  showColumn(index, scale) {
    const [left, top] = window.app.graph._groups[index].pos
    window.app.canvas.ds.scale = scale
    window.app.canvas.ds.offset = [-left, -top]
    window.app.canvas.setDirty(true, true)
  }
}
