// What comfy_page.py asks ComfyUI's page: what it reported, what its nodes show and where they are.
window.t2mvPage = {
  BADGE: 22, // drawn above the title, in the classic design

  // The page tells nobody when a dropped file is open, so its loader is watched.
  follow() {
    this.seen = []
    this.loads = 0
    const load = window.app.loadGraphData.bind(window.app)
    window.app.loadGraphData = async (...args) => {
      const result = await load(...args)
      this.loads += 1
      return result
    }
    for (const name of ['execution_success', 'execution_interrupted', 'execution_error'])
      window.app.api.addEventListener(name, () => this.seen.push(name))
    window.app.api.addEventListener('progress', ({ detail }) =>
      this.seen.push(`progress ${detail.node} ${detail.value}/${detail.max}`)
    )
    window.app.api.addEventListener('b_preview_with_metadata', ({ detail }) =>
      this.seen.push(`preview ${detail.nodeId}`)
    )
  },

  // A file let go over the canvas, as the mouse does it.
  drop(name, text) {
    const data = new DataTransfer()
    data.items.add(new File([text], name, { type: 'application/json' }))
    const canvas = document.querySelector('#graph-canvas')
    canvas.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }))
  },

  find(type) {
    return window.app.graph._nodes.find(node => node.type === type)
  },

  element(node) {
    return document.querySelector(`.lg-node[data-node-id="${node.id}"]`)
  },

  // [width, height] of every picture that a node shows.
  pictures(type) {
    const node = this.find(type)
    const element = this.element(node)
    const shown = element ? [...element.querySelectorAll('img')] : (node.imgs ?? [])
    return shown.filter(image => image.naturalWidth).map(image => [image.naturalWidth, image.naturalHeight])
  },

  text(type) {
    return this.find(type).widgets.find(widget => widget.name === '$$node-text-preview')?.value ?? null
  },

  // [left, top, right, bottom] of a node with its title and its badge, in the graph's units.
  box(node) {
    const element = this.element(node)
    if (element) {
      const { scale, offset } = window.app.canvas.ds
      const canvas = window.app.canvas.canvas.getBoundingClientRect()
      const box = element.getBoundingClientRect()
      const left = (box.left - canvas.left) / scale - offset[0]
      const top = (box.top - canvas.top) / scale - offset[1]
      return [left, top, left + box.width / scale, top + box.height / scale]
    }
    const [x, y] = node.pos
    const above = LiteGraph.NODE_TITLE_HEIGHT + (node.badges?.length ? this.BADGE : 0)
    const height = Math.max(node.size[1], node.computeSize()[1])
    return [x, y - above, x + node.size[0], y + height]
  },

  boxes() {
    const named = (item, name, box) => ({ name, box: box.map(Math.round) })
    return {
      nodes: window.app.graph._nodes.map(node => named(node, `${node.id} ${node.type}`, this.box(node))),
      groups: window.app.graph._groups.map(group => {
        const [x, y] = group.pos
        return named(group, group.title, [x, y, x + group.size[0], y + group.size[1]])
      })
    }
  },

  // Resolves when no node has grown or moved for half a second of frames.
  async settled() {
    const quiet = 30
    for (let before = '', same = 0; same < quiet; ) {
      await new Promise(requestAnimationFrame)
      const now = JSON.stringify(this.boxes())
      same = now === before ? same + 1 : 0
      before = now
    }
  }
}
window.t2mvPage.follow()
