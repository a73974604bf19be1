import { Card, CardBody, CardTitle, Grid, GridItem, Label, Progress } from '@patternfly/react-core'
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table'
import { useQuery } from '@tanstack/react-query'
import type { ReactNode } from 'react'
import { Fault, get, type Inventory } from '../api/client'
import { t } from '../i18n'
import { bytes, Empty, Shown } from '../ui/bits'

type PCI = NonNullable<Inventory['pci']>[number]

function Sheet({ title, head, rows }: { title: string; head: string[]; rows: ReactNode[][] }) {
  if (rows.length === 0) return null
  return (
    <GridItem span={12}><Card><CardTitle component="h2">{title}</CardTitle><CardBody><Table variant="compact" aria-label={title} borders={false}>
      <Thead><Tr>{head.map((h) => <Th key={h}>{h}</Th>)}</Tr></Thead>
      <Tbody>{rows.map((r, i) => <Tr key={i}>{r.map((c, j) => <Td key={j} dataLabel={head[j]}>{c}</Td>)}</Tr>)}</Tbody>
    </Table></CardBody></Card></GridItem>
  )
}

export function Hardware({ tenant, name }: { tenant: string; name: string }) {
  const inventory = useQuery({ queryKey: ['inventory', tenant, name], queryFn: ({ signal }) => get<Inventory>(`/api/v1/devices/${name}/inventory`, { tenant }, signal), meta: { kinds: ['Device'] } })
  if (inventory.error instanceof Fault && inventory.error.status === 404 && !inventory.data) return <Empty title={t('hw.none')} body={t('hw.none.body')} />
  return <Shown of={inventory}>{(i) => (
    <Grid hasGutter>
      {(i.pci ?? []).length > 0 && <GridItem span={12}><Card><CardTitle component="h2">{t('hw.tree')}</CardTitle><CardBody><Bus i={i} /></CardBody></Card></GridItem>}
      {(i.accelerators ?? []).length > 0 && <GridItem span={12}><Card><CardTitle component="h2">{t('hw.slices')}</CardTitle><CardBody><Slices i={i} /></CardBody></Card></GridItem>}
      <Claims i={i} />
      <Sheet title={t('hw.cards')} head={[t('col.name'), t('hw.link'), t('hw.driver'), t('hw.switch'), t('hw.clock')]} rows={(i.netDevices ?? []).map((n) => [n.name, <Label key="l" isCompact color={n.link?.state === 'up' ? 'green' : 'grey'}>{[n.link?.state, n.link?.speed ? `${n.link.speed} Mbit/s` : ''].filter(Boolean).join(' · ')}</Label>, n.driver, n.eswitch, n.ptp])} />
      <Sheet title={t('hw.disks')} head={[t('col.name'), t('col.size'), t('hw.model'), t('hw.wear'), t('box.health')]} rows={(i.disks ?? []).map((d) => [d.name, bytes(d.bytes), d.model, d.wear === undefined ? '' : <Progress key="w" value={Math.min(100, d.wear)} measureLocation="outside" aria-label={t('hw.wear')} />, (d.faults ?? []).join(', ')])} />
      <Sheet title={t('hw.nodes')} head={[t('col.name'), t('box.cpus'), t('box.memory')]} rows={(i.nodes ?? []).map((n) => [t('hw.node', { n: n.id }), n.cpus, n.memoryMiB ? bytes(n.memoryMiB * 1048576) : ''])} />
    </Grid>
  )}</Shown>
}

// Bus draws functions below the bridges that lead to them, and virtual ones below their physical one.
function Bus({ i }: { i: Inventory }) {
  const all = i.pci ?? []
  const on = new Map<string, string[]>()
  for (const d of [...(i.netDevices ?? []), ...(i.disks ?? [])]) if (d.pci) on.set(d.pci, [...(on.get(d.pci) ?? []), d.name])
  const known = new Set(all.map((f) => f.address))
  const above = (f: PCI) => f.physical || f.bridge || ''
  const below = (a: string) => all.filter((f) => above(f) === a && f.address !== a)
  const draw = (f: PCI, depth: number): ReactNode => (
    <li key={f.address}>
      <span className={f.driver ? 'fn' : 'fn fn-off'}><code>{f.address}</code>{(on.get(f.address) ?? []).map((n) => <b key={n}>{n}</b>)}<span className="dim">{f.driver ?? t('hw.nodriver')} · {f.id}</span>
        {f.physical && <Label isCompact variant="outline" color="purple">{t('hw.virtual')}</Label>}
        {!!f.maxVirtualFunctions && <Label isCompact color="blue">{t('hw.vf', { n: f.virtualFunctions ?? 0, max: f.maxVirtualFunctions })}</Label>}</span>
      {depth < 16 && below(f.address).length > 0 && <ul>{below(f.address).map((c) => draw(c, depth + 1))}</ul>}
    </li>
  )
  return <ul className="bus">{all.filter((f) => !known.has(above(f))).map((f) => draw(f, 0))}</ul>
}

// Slices draws each card as a bar of what it is divided into.
function Slices({ i }: { i: Inventory }) {
  return <>{(i.accelerators ?? []).map((g) => {
    const parts = (i.claims ?? []).filter((c) => c.class === 'gpu' && (c.id === g.id || c.parent === g.id))
    return (
      <div className="card-bar" key={g.id}>
        <p><b>{g.model ?? g.id}</b> <span className="dim">{[g.id, g.driver, g.memoryMiB ? bytes(g.memoryMiB * 1048576) : ''].filter(Boolean).join(' · ')}</span></p>
        <ul className="slices">{(parts.length ? parts : [null]).map((p, n) => {
          const by = (p?.holders ?? []).map((h) => `${h.app}/${h.service}`).join(', ')
          return <li key={p?.id ?? n} className={by ? 'held' : 'open'}><b>{p?.facts?.profile ?? p?.id ?? t('hw.gpus')}</b><span>{by || t('hw.free')}</span></li>
        })}</ul>
      </div>
    )
  })}</>
}

function Claims({ i }: { i: Inventory }) {
  const groups = new Map<string, { total: number; held: number; by: Set<string> }>()
  for (const c of i.claims ?? []) {
    const k = [c.class, c.driver].filter(Boolean).join(' · ')
    const g = groups.get(k) ?? { total: 0, held: 0, by: new Set<string>() }
    g.total += c.units ?? 1
    for (const h of c.holders ?? []) { g.held += 1; g.by.add(`${h.app}/${h.service}`) }
    groups.set(k, g)
  }
  return <Sheet title={t('hw.claims')} head={[t('hw.class'), t('col.used'), t('col.total'), t('hw.by')]} rows={[...groups].map(([k, g]) => [k, g.held, g.total, [...g.by].join(', ')])} />
}
