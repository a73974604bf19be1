import { Link } from 'react-router'
import type { Device } from '../api/client'
import { t } from '../i18n'
import { isState, stateName } from './bits'

interface Node { name: string; tenant: string; state: string; relay: boolean; apps: number; below: Node[]; x: number; y: number }
const wide = 168, high = 56, box = 148

// Tree draws the boxes as they hang, the core on the left. Two that name each other hang on nothing.
export function Tree({ devices }: { devices: { device: Device; state: string }[] }) {
  const byID = new Map<string, Node>()
  const parent = new Map<Node, string>()
  for (const { device: d, state } of devices) {
    const n: Node = { name: d.metadata.name, tenant: d.metadata.tenant ?? 'default', state, relay: d.status?.relay ?? false, apps: d.status?.apps?.length ?? 0, below: [], x: 0, y: 0 }
    byID.set(d.status?.id ?? n.name, n)
    parent.set(n, d.status?.parent ?? '')
  }
  const root: Node = { name: t('over.core'), tenant: '', state: 'core', relay: true, apps: 0, below: [], x: 0, y: 0 }
  const loose: Node[] = []
  for (const n of byID.values()) {
    const up = parent.get(n) ?? ''
    const above = up === 'core' ? root : byID.get(up)
    const loops = () => { for (let p = above, i = 0; p && p !== root; p = byID.get(parent.get(p) ?? ''), i++) if (p === n || i > 32) return true; return false }
    if (above && !loops()) above.below.push(n)
    else loose.push(n)
  }
  const all: Node[] = []
  let row = 0, deep = 0
  const place = (n: Node, depth: number): void => {
    n.x = depth * wide
    deep = Math.max(deep, depth)
    n.below.sort((a, b) => Number(b.relay) - Number(a.relay) || a.name.localeCompare(b.name, undefined, { numeric: true }))
    if (n.below.length === 0) n.y = row++ * high
    else { n.below.forEach((c) => place(c, depth + 1)); n.y = (n.below[0]!.y + n.below[n.below.length - 1]!.y) / 2 }
    all.push(n)
  }
  place(root, 0)
  loose.forEach((n) => place(n, 1))
  const width = deep * wide + box + 8, height = Math.max(row, 1) * high
  return (
    <div className="tree" tabIndex={0} role="group" aria-label={t('over.tree')}>
      <svg width={width} height={height} viewBox={`0 0 ${width} ${height}`} aria-hidden="true">
        {all.flatMap((n) => n.below.map((c) => <path key={`${n.name}/${c.tenant}/${c.name}`} className={c.state === 'offline' ? 'wire cut' : 'wire'} d={`M${n.x + box} ${n.y + 22} C${n.x + box + 12} ${n.y + 22}, ${c.x - 12} ${c.y + 22}, ${c.x} ${c.y + 22}`} />))}
      </svg>
      <ul className="tree-boxes" ref={(e) => { if (e) { e.style.width = `${width}px`; e.style.height = `${height}px` } }}>
        {all.map((n) => (
          <li key={`${n.tenant}/${n.name}`} ref={(e) => { if (e) { e.style.left = `${n.x}px`; e.style.top = `${n.y}px` } }} className={`box box-${n.state}`}>
            {n === root ? <span className="box-in"><b>{n.name}</b></span> : (
              <Link className="box-in" to={`/devices/${n.tenant}/${n.name}`} title={n.name}><b>{n.name}</b><span>{isState(n.state) ? stateName(n.state) : ''}</span></Link>
            )}
          </li>
        ))}
      </ul>
    </div>
  )
}
