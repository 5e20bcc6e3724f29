// Shows under a node of this pack what it says: pages do so by themselves for ComfyUI's own nodes only.
import { app } from "../../scripts/app.js"

const NODES = ["LoraportTransferLora", "LoraportCheckLora"]

function show(node, text) {
  let widget = node.widgets?.find((each) => each.name === "said")
  if (!widget) {
    widget = app.widgets.STRING(node, "said", ["STRING", { multiline: true }], app).widget
    widget.serialize = false // no input: it goes neither into a saved workflow
    widget.options.serialize = false // nor into what is queued
    if (widget.element) widget.element.readOnly = true
    const [width, height] = node.computeSize()
    node.setSize([Math.max(node.size[0], width, 360), Math.max(node.size[1], height + 100)])
  }
  widget.value = text
}

app.registerExtension({
  name: "loraport.shown",
  beforeRegisterNodeDef(type, definition) {
    if (!NODES.includes(definition.name)) return
    const before = type.prototype.onExecuted
    type.prototype.onExecuted = function (message) {
      before?.apply(this, arguments)
      if (message?.text) show(this, message.text.join("\n"))
    }
  },
})
