"""How the report looks: one style sheet for light and dark, screens and phones, and paper."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #1d2126; --soft: #5d6670; --line: #e2dfd9; --accent: #0b6e99;
  --good: #1c7c4a; --bad: #b3361e; --good-paper: #e5f3ea; --bad-paper: #fbe9e4; --grey-paper: #efedea;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b5588f; --c4: #3a9bd1; --c5: #b38a00; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #15181c; --card: #1d2126; --ink: #e9e7e3; --soft: #a3abb4; --line: #343a42; --accent: #6cc3ea;
  --good: #6fd39c; --bad: #ff9a83; --good-paper: #183425; --bad-paper: #43211a; --grey-paper: #2b3037;
  --c0: #56a8e0; --c1: #ff8a3d; --c2: #35cfa0; --c3: #e08fbf; --c4: #9ad4f5; --c5: #e6c34d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.6rem, 4.5vw, 2.4rem); line-height: 1.15; margin: .2rem 0 .8rem; letter-spacing: -.015em;
  overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3rem 0 .4rem; padding-top: 1.4rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .4rem 0 .8rem; max-width: 70ch; }
.eyebrow { color: var(--accent); font-weight: 600; font-size: .85rem; margin: 0; }
.verdict { font-size: clamp(1.1rem, 2.6vw, 1.35rem); line-height: 1.4; max-width: 52ch; }
.soft, small { color: var(--soft); } small { font-size: .84rem; font-weight: 400; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(145px, 1fr)); gap: .8rem; margin: 1.6rem 0 0;
  padding: 0; list-style: none; }
.cards li { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .8rem 1rem; }
.cards b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.cards span { color: var(--soft); font-size: .86rem; }
.grid2 { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); gap: 1.2rem; }
figure { margin: .8rem 0; align-self: start; min-width: 0;
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .9rem; }
figure svg, figure img { display: block; width: 100%; height: auto; } figure img { background: #fff; border-radius: 6px; }
figcaption { font-size: .86rem; color: var(--soft); margin-top: .5rem; }
svg text { fill: var(--soft); font-size: 12.5px; } svg .grid { stroke: var(--line); }
svg .line { fill: none; stroke: var(--c); stroke-width: 2.2; stroke-linejoin: round; } svg .dashed { stroke-dasharray: 6 5; }
svg .band { fill: var(--c); opacity: .18; } svg circle { fill: var(--c); }
svg .area { fill: var(--c); stroke: var(--card); stroke-width: .6; } svg .a1 { opacity: .6; } svg .a2 { opacity: .35; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 0; padding: 0; list-style: none; color: var(--ink); }
.legend li::before { content: ""; display: inline-block; width: 1.1em; border-top: 3px solid var(--c); vertical-align: .28em;
  margin-right: .4em; } .legend .dashed::before { border-top-style: dashed; }
.legend .a1::before { opacity: .6; } .legend .a2::before { opacity: .35; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .93rem; margin: .6rem 0; }
th, td { text-align: left; padding: .5rem .7rem .5rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; font-size: .82rem; border-bottom-width: 2px; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } tbody th { font-weight: 600; }
code, pre { font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem; overflow-x: auto;
  white-space: pre-wrap; }
.verdict-healthy, .verdict-not-healthy, .verdict-not-judged { display: inline-block; border-radius: 99px; padding: .08rem .6rem;
  font-size: .82rem; font-weight: 600; white-space: nowrap; background: var(--grey-paper); color: var(--soft); }
.verdict-healthy { background: var(--good-paper); color: var(--good); }
.verdict-not-healthy { background: var(--bad-paper); color: var(--bad); }
.spark { width: 96px; height: 24px; } .spark polyline { fill: none; stroke: var(--accent); stroke-width: 1.6; }
.bars { max-width: 640px; } .bar { position: relative; width: 55%; }
.bar i { position: absolute; top: 28%; height: 44%; border-radius: 3px; } .bar .more { left: 50%; background: var(--good); }
.bar .less { right: 50%; background: var(--bad); }
details { margin: .8rem 0; } summary { cursor: pointer; font-weight: 600; }
@media (max-width: 640px) { main { padding: 1.4rem 1rem 3rem; }
  .health thead { display: none; } .health, .health tbody, .health tr, .health th, .health td { display: block; }
  .health tr { border-bottom: 1px solid var(--line); padding: .7rem 0; } .health th, .health td { border: 0; padding: .1rem 0; }
  .health .number { text-align: left; } .health td[data-label]::before { content: attr(data-label) ": "; color: var(--soft); } }
@media print { body { background: #fff; } figure, .cards li { break-inside: avoid; } }
"""
