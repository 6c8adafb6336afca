/** Formulas as MathML nodes. Loaded when a reply holds one. */

import temml from "temml";

interface Tree {
  type?: string;
  text?: string;
  children?: Tree[];
  attributes?: Record<string, unknown>;
  classes?: string[];
  style?: Record<string, unknown>;
}

const MATHML = "http://www.w3.org/1998/Math/MathML";
const ELEMENTS = new Set(
  ("math semantics annotation mrow mstyle mi mn mo ms mtext mspace mfrac msqrt mroot msub msup msubsup munder mover " +
    "munderover mmultiscripts mprescripts none mtable mtr mlabeledtr mtd mpadded mphantom menclose merror").split(" "),
);
const ATTRIBUTES = new Set(
  ("display displaystyle scriptlevel mathvariant mathsize stretchy symmetric fence separator form largeop movablelimits " +
    "accent accentunder lspace rspace minsize maxsize width height depth voffset linethickness columnalign rowalign " +
    "columnspacing rowspacing columnlines rowlines columnspan rowspan notation encoding framespacing frame side dir").split(" "),
);
/** Of what a text says about size: em. */
const LARGEST = 40;
const DEEPEST = 200;

/**
 * The formula as one node.
 *
 * Nothing of it can load, link or run: the nodes are made from temml's tree by the lists above, whatever the tree holds.
 *
 * @throws where the source is no formula.
 */
export function formula(source: string, display: boolean): Element {
  const options = { displayMode: display, throwOnError: true, trust: false, maxSize: [LARGEST, LARGEST], maxExpand: 200, annotate: true };
  const render = (temml as unknown as Record<string, (source: string, options: object) => Tree>)["__renderToMathMLTree"]!;
  const node = build(render(source, options), 0);
  if (!(node instanceof Element)) throw new TypeError("no formula");
  return node;
}

function build(tree: Tree, depth: number): Node {
  if (depth > DEEPEST) throw new RangeError("too deep");
  if (tree.text !== undefined) return document.createTextNode(String(tree.text));
  const name = tree.type ?? "";
  const node = ELEMENTS.has(name) ? document.createElementNS(MATHML, name) : document.createDocumentFragment();
  if ("setAttribute" in node) {
    for (const [key, value] of Object.entries(tree.attributes ?? {})) {
      if (ATTRIBUTES.has(key)) node.setAttribute(key, String(value));
      else if (key === "style") declare(node, String(value).split(";").map((each) => each.split(":") as [string, string]));
    }
    const classes = (tree.classes ?? []).filter((each) => /^[\w-]+$/.test(each)).join(" ");
    if (classes) node.setAttribute("class", classes);
    declare(node, Object.entries(tree.style ?? {}));
  }
  for (const child of tree.children ?? []) node.appendChild(build(child, depth + 1));
  return node;
}

/** Styles by the object model, which a policy without inline styles allows; none that could load or leave its place. */
function declare(node: Element, styles: [string, unknown][]): void {
  const style = (node as unknown as HTMLElement).style;
  for (const [name, value] of styles) {
    const property = name.trim().replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    if (!/^(?:color|background-color|(?:padding|border|margin|text|font|math|vertical)(?:-[a-z]+)*|width|height)$/.test(property)) continue;
    if (typeof value === "string" && !/[(@\\]/.test(value)) style?.setProperty(property, value.trim());
  }
}
