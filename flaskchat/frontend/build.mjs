// Bundles the page into the folder given as the first argument (default: ../static, beside the package's templates).
// A module with its styles inside and the parts that it loads later, page.css and the icon for the page around it, and the licences of the bundle's parts.

import { copyFile, mkdir, readFile, readdir, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { build, transform } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = resolve(process.argv[2] ?? join(here, "..", "static"));

/** A stylesheet as text: it goes into the shadow root by adoptedStyleSheets, which a strict CSP allows. */
const styles = {
  name: "styles",
  setup(api) {
    api.onLoad({ filter: /\.css$/ }, async ({ path }) => {
      const { code } = await transform(await readFile(path, "utf8"), { loader: "css", minify: true });
      return { contents: code.trim(), loader: "text" };
    });
  },
};

/**
 * marked comes as one minified file that sets itself up when it is loaded, so nothing of it can be left out. Its source
 * map holds its sources, and of these the lexer is a third less to load. Without them, the file as it comes will do.
 */
const lexer = {
  name: "lexer",
  setup(api) {
    const main = createRequire(import.meta.url).resolve("marked");
    const sources = new Map();
    api.onStart(async () => {
      const map = JSON.parse(await readFile(`${main}.map`, "utf8").catch(() => '{"sources":[]}'));
      map.sources.forEach((name, index) => sources.set(join(dirname(main), name), map.sourcesContent[index]));
    });
    api.onResolve({ filter: /^marked$/ }, ({ kind }) => {
      const path = join(dirname(main), "..", "src", "Lexer.ts");
      return kind === "import-statement" && sources.has(path) ? { path, namespace: "marked", sideEffects: false } : null;
    });
    api.onResolve({ filter: /^\./, namespace: "marked" }, ({ path, resolveDir, importer }) => ({
      path: resolve(resolveDir || dirname(importer), path),
      namespace: "marked",
      sideEffects: false,
    }));
    api.onLoad({ filter: /.*/, namespace: "marked" }, ({ path }) => ({
      // `_Lexer as Lexer`: what marked's own entry exports.
      contents: path.endsWith("Lexer.ts") ? `${sources.get(path)}\nexport { _Lexer as Lexer };` : sources.get(path),
      loader: "ts",
    }));
  },
};

/** Packages that come as no ES module are made into one: the bundler's own way costs each file a wrapper. */
const modules = {
  name: "modules",
  setup(api) {
    const require = createRequire(import.meta.url);
    api.onResolve({ filter: /^temml$/ }, ({ kind }) =>
      // Its own minified file is a sixth smaller than what a minifier makes of its module.
      kind === "import-statement" ? { path: require.resolve("temml/dist/temml.min.js"), namespace: "temml" } : null,
    );
    api.onLoad({ filter: /.*/, namespace: "temml" }, async ({ path }) => ({
      contents: `${await readFile(path, "utf8")}\nexport default temml;`,
    }));
    api.onResolve({ filter: /^highlight\.js\/lib\// }, ({ path }) => ({ path: require.resolve(path), sideEffects: false }));
    api.onLoad({ filter: /highlight\.js[\\/]lib[\\/].*\.js$/ }, async ({ path }) => {
      const source = await readFile(path, "utf8");
      const contents = source.replace(/^module\.exports = (\w+);$/m, "export default $1;");
      if (contents === source) throw new Error(`${path} exports nothing that is known`);
      return { contents };
    });
  },
};

const common = {
  outdir: out,
  bundle: true,
  format: "esm",
  target: ["chrome111", "firefox115", "safari16.4"],
  minify: true,
  sourcemap: false,
  legalComments: "none",
  charset: "utf8",
  metafile: true,
  write: false,
  logLevel: "warning",
};

const result = await build({
  ...common,
  // Files with names of their own: a page that stays open while the server is updated still finds them.
  entryPoints: {
    flaskchat: join(here, "src", "flaskchat.ts"),
    markdown: join(here, "src", "markdown-chunk.ts"),
    highlight: join(here, "src", "highlight.ts"),
    math: join(here, "src", "math.ts"),
  },
  // What is not needed at first load is imported when it is: those parts, and what they share with the entry, are files
  // of their own, named after what they hold.
  splitting: true,
  chunkNames: "part-[hash]",
  plugins: [styles, lexer, modules],
});

const files = new Map(result.outputFiles.map(({ path, text }) => [path, text]));
const entry = join(out, "flaskchat.js");
await gather();
await mkdir(out, { recursive: true });
for (const [path, text] of files) await writeFile(path, text);

/**
 * The first load is one file: the parts that the entry imports at once go into it, and in their place are files that
 * hand on from it what the later ones share with it.
 */
async function gather() {
  const outputs = new Map(Object.entries(result.metafile.outputs).map(([path, each]) => [resolve(path), each]));
  const parts = new Set([entry]);
  for (const part of parts) {
    for (const { path, kind } of outputs.get(part).imports) if (kind === "import-statement") parts.add(resolve(path));
  }
  parts.delete(entry);
  const name = (at, each) => `p${at}_${each}`;
  const shared = [...parts].map((path, at) => ({ path, at, exports: outputs.get(path).exports }));
  const list = (at, exports, write) => exports.map((each) => write(each, name(at, each))).join(",");
  const contents = [
    `export * from ${JSON.stringify(entry)};`,
    ...shared.map(({ path, at, exports }) => `export {${list(at, exports, (each, own) => `${each} as ${own}`)}} from ${JSON.stringify(path)};`),
  ].join("\n");
  const whole = await build({
    ...common,
    stdin: { contents, resolveDir: out },
    plugins: [
      {
        name: "built",
        setup(api) {
          api.onResolve({ filter: /.*/ }, ({ path, kind }) =>
            kind === "dynamic-import" ? { path, external: true } : { path: resolve(out, path), namespace: "built" },
          );
          api.onLoad({ filter: /.*/, namespace: "built" }, ({ path }) => ({ contents: files.get(path), resolveDir: out }));
        },
      },
    ],
  });
  files.set(entry, whole.outputFiles[0].text);
  for (const { path, at, exports } of shared) {
    files.set(path, `export{${list(at, exports, (each, own) => `${own} as ${each}`)}}from"./flaskchat.js";\n`);
  }
}

const page = await transform(await readFile(join(here, "src", "page.css"), "utf8"), { loader: "css", minify: true });
await writeFile(join(out, "page.css"), page.code);
await copyFile(join(here, "src", "icon.svg"), join(out, "icon.svg"));
await writeFile(join(out, "LICENSES.txt"), await licenses(Object.keys(result.metafile.inputs)));

async function licenses(inputs) {
  const names = new Set();
  for (const input of inputs) {
    const found = /.*node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input);
    if (found) names.add(found[1]);
  }
  const parts = ["flaskchat.js and its parts contain the following packages. flaskchat itself is under the BSD-3-Clause licence."];
  for (const name of [...names].sort()) {
    const folder = join(here, "node_modules", name);
    const { version, license } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
    const file = (await readdir(folder)).find((each) => /^licen[cs]e(\.(md|txt))?$/i.test(each));
    if (!file) throw new Error(`${name} has no licence text`);
    parts.push(`${"-".repeat(78)}\n${name} ${version} (${license})\n\n${(await readFile(join(folder, file), "utf8")).trim()}`);
  }
  return parts.join("\n\n") + "\n";
}
