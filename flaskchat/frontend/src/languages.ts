/** The languages whose code can be coloured, and the names they go by. What colours them is loaded when it is needed. */

const NAMES =
  "bash:sh zsh shell console shellsession terminal|c:h|cpp:c++ cc cxx hpp h++|csharp:cs c#|css|diff:patch|dockerfile:docker|go:golang|" +
  "graphql:gql|ini:toml cfg conf properties|java|javascript:js jsx mjs cjs node|json:json5 jsonc jsonl|kotlin:kt kts|lua|" +
  "makefile:make mk|markdown:md|nginx|perl:pl|php|powershell:ps1 pwsh ps|python:py python3 py3 pyi|r|ruby:rb|rust:rs|scss:sass|sql:mysql sqlite|" +
  "pgsql:postgres postgresql plpgsql|swift|typescript:ts tsx mts cts|xml:html xhtml svg rss vue jinja|yaml:yml";

const known = new Map<string, string>();
for (const each of NAMES.split("|")) {
  const [name, others] = each.split(":") as [string, string?];
  for (const alias of [name, ...(others?.split(" ") ?? [])]) known.set(alias, name);
}

/** The language meant by what a fence says; undefined for none that is known. */
export function languageOf(name: string): string | undefined {
  return known.get(name.toLowerCase());
}
