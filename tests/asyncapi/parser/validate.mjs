// Reads a JSON array of AsyncAPI documents from standard input, and writes one of what the parser says of each.
import { readFileSync } from 'node:fs';
import { Parser } from '@asyncapi/parser';

const parser = new Parser();
const found = [];
for (const document of JSON.parse(readFileSync(0, 'utf8'))) {
  const { document: parsed, diagnostics } = await parser.parse(document);
  found.push({
    parsed: parsed !== undefined,
    diagnostics: diagnostics.map(({ severity, code, message, path }) => ({ severity, code, message, path: path.join('/') })),
  });
}
console.log(JSON.stringify(found));
