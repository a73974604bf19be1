// Finds words that people read and that are in no language file, and keys that nothing uses.
import fs from 'node:fs'
import path from 'node:path'
import ts from 'typescript'

const root = path.resolve(import.meta.dirname, '../src')
const spoken = new Set(['aria-label', 'title', 'label', 'placeholder', 'alt', 'titleText', 'description', 'categoryName', 'closeBtnAriaLabel', 'valueText'])
// Words of the API, which are the same in every language.
const names = new Set(['default'])
const files = fs.readdirSync(root, { recursive: true }).filter((f) => /\.tsx?$/.test(f) && !f.startsWith('i18n') && !f.endsWith('.d.ts'))
const faults = []
let all = ''
for (const f of files) {
  const text = fs.readFileSync(path.join(root, f), 'utf8')
  all += text
  const source = ts.createSourceFile(f, text, ts.ScriptTarget.Latest, true, ts.ScriptKind.TSX)
  const say = (node, words) => faults.push(`${f}:${source.getLineAndCharacterOfPosition(node.getStart()).line + 1}: "${words}" is in no language file`)
  const look = (node) => {
    if (ts.isJsxText(node) && /\p{L}/u.test(node.text)) say(node, node.text.trim())
    if (ts.isJsxAttribute(node) && spoken.has(node.name.getText()) && node.initializer && ts.isStringLiteral(node.initializer) && /\p{L}/u.test(node.initializer.text) && !names.has(node.initializer.text)) say(node, node.initializer.text)
    ts.forEachChild(node, look)
  }
  look(source)
}
const read = (f) => new Map([...fs.readFileSync(path.join(root, 'i18n', f), 'utf8').matchAll(/'([a-z0-9.]+)': '((?:[^'\\]|\\.)*)'/g)].map((m) => [m[1], m[2]]))
const en = read('en.ts'), zh = read('zh.ts')
for (const k of en.keys()) if (!zh.has(k)) faults.push(`zh.ts lacks ${k}`)
for (const k of zh.keys()) if (!en.has(k)) faults.push(`en.ts lacks ${k}`)
for (const [k, v] of en) {
  const holes = (s) => [...(s ?? '').matchAll(/\{\w+\}/g)].map((m) => m[0]).sort().join()
  if (zh.has(k) && holes(v) !== holes(zh.get(k))) faults.push(`${k}: the languages fill in different things`)
  const dynamic = /^(state|link|edit|phase|rdev|inc|aud|quota)\./.test(k)
  if (!dynamic && !all.includes(`'${k}'`)) faults.push(`${k}: nothing says it`)
}
if (faults.length) { console.error(faults.join('\n')); process.exit(1) }
console.log(`words: ${en.size} keys in two languages`)
