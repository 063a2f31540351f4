"""Colours that tell painted phrases apart, on canvases, chips and overlays."""

# Far enough apart that no pixel could be two of them (`canvas.check_legend`), and from white and black.
PALETTE = ("#e03131", "#1971c2", "#2f9e44", "#f08c00", "#9c36b5", "#0c8599", "#846358", "#e64980", "#66a80f", "#495057")
