"""The look of the report: one style sheet, light and dark, for phones and wide screens."""

STEPS = 10  # of the colours of a confusion matrix
_LIGHT = {
    "bg": "#f6f6f3", "card": "#ffffff", "ink": "#1c1f23", "soft": "#646a72", "line": "#e2e3de",
    "main": "#2e6da4", "main-soft": "#a9c6de", "gap": "#c8602a", "rail": "#eceeea",
}  # fmt: skip
_DARK = {
    "bg": "#111315", "card": "#1a1d20", "ink": "#e6e8ea", "soft": "#9ba2aa", "line": "#2d3236",
    "main": "#6aa5d8", "main-soft": "#3b5c78", "gap": "#e58b57", "rail": "#2a2f33",
}  # fmt: skip

_LAYOUT = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
 "Helvetica Neue",Arial,sans-serif;-webkit-font-smoothing:antialiased}
main{max-width:1080px;margin:0 auto;padding:40px 24px 64px}
header p,.note,figcaption,footer{color:var(--soft)}
h1{font-size:30px;line-height:1.2;letter-spacing:-.015em;margin:0 0 8px;font-weight:650;overflow-wrap:anywhere}
h2{font-size:20px;line-height:1.3;letter-spacing:-.01em;margin:0 0 4px;font-weight:650}
p{margin:0 0 12px;overflow-wrap:anywhere}
.note{font-size:14px;max-width:80ch}
.after{margin:24px 0 0}
.after+.box{margin-top:8px}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:24px;margin-top:20px}
a{color:var(--main)}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:14px;margin-top:16px}
nav a{text-decoration:none;border-bottom:1px solid var(--line);line-height:1.9}
nav a:hover{border-color:currentColor}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:28px}
.cards div{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px 18px}
.cards span{display:block;font-size:13px;color:var(--soft)}
.cards b{display:block;font-size:28px;line-height:1.25;font-weight:620;letter-spacing:-.02em;
 font-variant-numeric:tabular-nums}
.cards b small{font-size:16px;font-weight:500;color:var(--soft);margin-left:2px}
.box{overflow:auto;max-height:min(920px,90vh);border:1px solid var(--line);border-radius:8px;margin-top:14px;
 -webkit-overflow-scrolling:touch;overscroll-behavior-x:contain;width:fit-content;max-width:100%}
table{border-collapse:separate;border-spacing:0;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:5px 12px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:550}
thead th{position:sticky;top:0;background:var(--card);color:var(--soft);font-weight:500;z-index:2}
tbody th,tfoot th,thead th:first-child{position:sticky;left:0;background:var(--card);text-align:left;z-index:1}
tbody th,tfoot th{max-width:220px;overflow:hidden;text-overflow:ellipsis}
thead th:first-child{z-index:3}
tbody tr:last-child>*{border-bottom:0}
tfoot>tr>*{border-top:1px solid var(--line);border-bottom:0;color:var(--soft)}
tfoot>tr~tr>*{border-top:0}
tfoot th{white-space:normal}
#pairs th:nth-child(2),td.name{text-align:left}
td.name{max-width:220px;overflow:hidden;text-overflow:ellipsis}
.wide{width:100%}
.wide table{width:100%}
#classes td{min-width:92px}
#classes td:last-child{min-width:0}
.bar{display:block;width:100%;height:4px;margin-top:3px;border-radius:2px}
.bar rect{fill:var(--main)}
.bar .rail{fill:var(--rail)}
#matrix{font-size:12px;line-height:1.2}
#matrix td{padding:0;min-width:34px;height:30px;text-align:center;border:0}
#matrix thead th{text-align:center;padding:10px 0 8px;vertical-align:bottom;border-bottom:1px solid var(--line)}
#matrix thead th:first-child{padding:10px 12px 8px;text-align:left;font-size:11px}
#matrix thead th:not(:first-child) span{writing-mode:vertical-rl;transform:rotate(180deg);max-height:130px;
 overflow:hidden;text-overflow:ellipsis;display:inline-block}
#matrix tbody th{padding:0 12px;border-bottom:0;font-size:12px;border-right:1px solid var(--line);max-width:150px}
#matrix td .n{display:none}
.switch{display:inline-flex;border:1px solid var(--line);border-radius:8px;overflow:hidden;margin-top:10px;
 font-size:14px}
.switch label{padding:5px 14px;cursor:pointer;color:var(--soft)}
.pick{position:absolute;opacity:0;pointer-events:none}
#as-shares:checked~.switch [for=as-shares],#as-counts:checked~.switch [for=as-counts]{background:var(--main);
 color:var(--card)}
#as-shares:focus-visible~.switch [for=as-shares],#as-counts:focus-visible~.switch [for=as-counts]{
 outline:2px solid var(--ink);outline-offset:-3px}
#as-counts:checked~.box .s{display:none}
#as-counts:checked~.box #matrix .n{display:inline}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:20px 36px;align-items:start;
 margin-top:14px}
.chart{display:block;width:100%;max-width:520px;height:auto}
.chart text{font-size:11px;fill:var(--soft);font-variant-numeric:tabular-nums}
.chart .axis{stroke:var(--line);stroke-width:1}
.chart .ideal{stroke:var(--soft);stroke-width:1;stroke-dasharray:4 4}
.chart rect.main,.chart circle.main{fill:var(--main)}
.chart .mark{stroke:var(--gap);stroke-width:2.5}
.chart circle.gap{fill:var(--gap)}
.chart rect.soft{fill:var(--main-soft)}
.chart .line{fill:none;stroke-width:2;stroke-linejoin:round}
.line.main{stroke:var(--main)}
.line.gap{stroke:var(--gap)}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;color:var(--soft);margin:6px 0 10px;padding:0;
 list-style:none}
.key li::before{content:"";display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:7px;
 background:var(--main)}
.key li.gap::before{background:var(--gap)}
.key li.flat::before{height:3px;width:16px;vertical-align:.25em}
.key li.dash::before{height:0;width:16px;border-radius:0;border-top:1.5px dashed var(--soft);background:none;
 vertical-align:.28em}
dl{display:grid;grid-template-columns:auto 1fr;gap:5px 20px;margin:0;font-size:14px;align-items:baseline}
dt{color:var(--soft)}
dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.mistakes{display:grid;grid-template-columns:repeat(auto-fill,minmax(290px,1fr));gap:22px 20px;margin-top:18px}
figure{margin:0}
.pair{display:flex;gap:4px;border-radius:8px;overflow:hidden}
.pair img{display:block;flex:1 1 0;min-width:0;width:0;aspect-ratio:1;object-fit:cover;background:var(--rail)}
figcaption{font-size:13.5px;line-height:1.45;margin-top:8px;overflow-wrap:anywhere}
figcaption b{color:var(--gap);font-weight:600}
figcaption strong{color:var(--ink);font-weight:600}
figcaption code{font-size:12px}
code,.config dd{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.config dd,.config dt{font-size:13px}
.picture{display:block;max-width:none}
summary{cursor:pointer;font-size:14px;color:var(--main);margin-top:6px}
details dl{margin-top:14px}
footer{font-size:13px;margin-top:24px}
@media (max-width:600px){
main{padding:24px 12px 40px}
header,footer{padding:0 4px}
h1{font-size:25px}
section{padding:18px 14px;border-radius:10px;margin-top:14px}
.cards{grid-template-columns:1fr 1fr;gap:8px;margin-top:20px}
.cards div{padding:12px 14px}
.cards b{font-size:24px}
th,td{padding:5px 6px}
thead th,tbody th,tfoot th,td.name{font-size:12.5px}
tbody th,tfoot th,td.name{max-width:118px}
.cards div:last-child:nth-child(odd){grid-column:1/-1}
#matrix tbody th{max-width:104px;padding:0 8px}
#classes td{min-width:54px}
dl{grid-template-columns:minmax(110px,38%) 1fr}
}
@media print{body{background:#fff}section,.cards div{break-inside:avoid}.box{max-height:none}}
"""


def style_sheet() -> str:
    """The whole style sheet; it names no address."""
    return (
        f":root{{color-scheme:light dark;{_variables(_LIGHT)}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{_variables(_DARK)}}}}}"
        f"{_LAYOUT}{_cells(_LIGHT)}\n@media screen and (prefers-color-scheme:dark){{{_cells(_DARK)}}}\n"
    )


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def _cells(colours: dict[str, str]) -> str:
    """Colours of the matrix: ``r1`` … for what is right, ``w1`` … for what is wrong; with the ink for each."""
    rules = []
    for kind, name in (("r", "main"), ("w", "gap")):
        for step in range(1, STEPS + 1):
            background = _mix(_rgb(colours["card"]), _rgb(colours[name]), 0.08 + 0.92 * step / STEPS)
            ink = max(((20, 22, 25), (255, 255, 255)), key=lambda text: _contrast(text, background))
            rules.append(f"#matrix .{kind}{step}{{background:{_hex(background)};color:{_hex(ink)}}}")
    return "".join(rules)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _mix(one: tuple[int, int, int], other: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    red, green, blue = (round((1 - share) * a + share * b) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance, 0 to 1, as the Web Content Accessibility Guidelines 2.1 define it."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Contrast of two colours, 1 to 21, as the same guidelines define it."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)
