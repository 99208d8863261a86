"""Bars as SVG: for each image a row of panels for seconds, CPU, memory and disk."""

from html import escape

PANELS = [("seconds", 1, "{:.1f}"), ("CPU seconds", 1, "{:.1f}"), ("peak memory, MB", 1e-6, "{:.0f}"), ("disk, MB", 1e-6, "{:.0f}")]
NAMES, WIDTH, GAP, BAR, STEP, HEAD = 230, 190, 60, 14, 20, 52
OWN, OTHER = "#1f6f8b", "#b9c4cc"


def draw(results):
    """`results`: of each image, of each tool, a number for each panel. Tools whose name begins with ours are marked."""
    parts, top = [], 10
    for image, tools in results.items():
        parts.append(f'<text x="10" y="{top + 16}" class="h">{escape(image)}</text>')
        for at, (title, unit, form) in enumerate(PANELS):
            left = NAMES + at * (WIDTH + GAP)
            values = {tool: took[at] * unit for tool, took in tools.items()}
            most = max(values.values()) or 1
            parts.append(f'<text x="{left}" y="{top + 36}" class="t">{escape(title)}</text>')
            for row, (tool, value) in enumerate(values.items()):
                y = top + HEAD + row * STEP
                if at == 0:
                    parts.append(f'<text x="{NAMES - 10}" y="{y + 11}" text-anchor="end">{escape(tool)}</text>')
                if not value:
                    continue
                length = max(1, value / most * WIDTH)
                colour = OWN if tool.startswith("layerstore") else OTHER
                parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
                parts.append(f'<text x="{left + length + 4:.1f}" y="{y + 11}">{form.format(value)}</text>')
        top += HEAD + len(tools) * STEP + 16
    width = NAMES + len(PANELS) * (WIDTH + GAP)
    style = "text{font:12px sans-serif;fill:#222}.h{font-weight:bold;font-size:15px}.t{fill:#555}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" height="{top}">'
    ground = f'<rect width="{width}" height="{top}" fill="#fff"/>'
    return "\n".join([head, f"<style>{style}</style>", ground, *parts, "</svg>"]) + "\n"
