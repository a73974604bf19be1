import { Button, Card, CardBody, CardTitle, Grid, GridItem, PageSection, Progress, ProgressMeasureLocation, ProgressSize } from '@patternfly/react-core'
import type { ReactNode } from 'react'
import { Link } from 'react-router'
import type { Quota, Tenant, Thing } from '../api/client'
import { t, type Key } from '../i18n'
import { Ago, Head, Shown, useThings } from '../ui/bits'
import { Sheet } from '../ui/sheet'

export default function Admin() {
  const tenants = useThings<Tenant>('tenants', 'Tenant')
  const accounts = useThings('serviceaccounts', 'ServiceAccount')
  const bindings = useThings('rolebindings', 'RoleBinding')
  const quotas = useThings<Quota>('quotas', 'Quota')
  const part = (title: Key, kind: string, inner: ReactNode, note?: string) => (
    <GridItem span={12}><Card><CardTitle component="h2">{t(title)}</CardTitle><CardBody>{inner}{note && <p className="dim">{note}</p>}<Button variant="link" isInline component={(p) => <Link {...p} to={`/edit/${kind}`} />}>{t('edit.new', { kind })}</Button></CardBody></Card></GridItem>
  )
  const named = (o: Thing) => <Link key="n" to={`/edit/${o.kind}/${o.metadata.tenant}/${o.metadata.name}`}>{o.metadata.name}</Link>
  const none = <p className="dim">{t('admin.none')}</p>
  return (
    <>
      <Head title={t('nav.admin')} />
      <PageSection><Grid hasGutter>
        {part('admin.tenants', 'Tenant', <Shown of={tenants}>{(l) => <Tenants all={l.items} />}</Shown>)}
        {part('admin.accounts', 'ServiceAccount', <Shown of={accounts}>{(l) => l.items.length === 0 ? none : <Sheet label={t('admin.accounts')} head={[t('col.name'), t('col.tenant'), t('col.updated')]} rows={l.items.map((o) => [`${o.metadata.tenant}/${o.metadata.name}`, [named(o), o.metadata.tenant, <Ago key="u" time={o.metadata.updated} />]])} />}</Shown>, t('admin.tokens'))}
        {part('admin.quotas', 'Quota', <Shown of={quotas}>{(l) => l.items.length === 0 ? none : <Quotas all={l.items} />}</Shown>)}
        {part('admin.bindings', 'RoleBinding', <Shown of={bindings}>{(l) => l.items.length === 0 ? none : <Sheet label={t('admin.bindings')} head={[t('col.name'), t('col.role'), t('col.subjects'), t('col.scope')]} rows={l.items.map((o) => {
          const s = o.spec as { role?: string; site?: string; fleet?: string; subjects?: Record<string, string>[] } | undefined
          return [`${o.metadata.tenant}/${o.metadata.name}`, [named(o), s?.role, (s?.subjects ?? []).map((x) => Object.values(x).join(' / ')).join(', '), <span key="s">{o.metadata.tenant} <span className="dim">{s?.site ? t('admin.site', { name: s.site }) : s?.fleet ? t('admin.fleet', { name: s.fleet }) : t('admin.whole')}</span></span>]]
        })} />}</Shown>)}
      </Grid></PageSection>
    </>
  )
}

// Tenants draws the tree of tenants; platform and default are always there, and no objects.
function Tenants({ all }: { all: Tenant[] }) {
  const known = new Set(all.map((x) => x.metadata.name))
  const below = (name: string) => all.filter((x) => (x.spec?.parent && known.has(x.spec.parent) ? x.spec.parent : 'platform') === name)
  const draw = (x: Tenant, depth: number): ReactNode => <li key={x.metadata.name}><Link to={`/edit/Tenant/default/${x.metadata.name}`}>{x.spec?.displayName ?? x.metadata.name}</Link> <span className="dim">{x.spec?.displayName ? x.metadata.name : ''}</span>{depth < 17 && below(x.metadata.name).length > 0 && <ul>{below(x.metadata.name).map((c) => draw(c, depth + 1))}</ul>}</li>
  return <ul className="bus"><li><b>{t('admin.platform')}</b><ul><li><code>{'default'}</code></li>{below('platform').map((x) => draw(x, 1))}</ul></li></ul>
}

// Quotas shows how much of what a tenant may have is in use.
function Quotas({ all }: { all: Quota[] }) {
  const rows = all.flatMap((o) => (['devices', 'apps', 'trainingJobs', 'trainingRanks'] as const).flatMap((what) => {
    const most = o.spec?.[what]
    if (most === undefined) return []
    const used = o.status?.used?.[what] ?? 0
    const percent = most > 0 ? Math.min(100, (100 * used) / most) : 100
    return [[`${o.metadata.tenant}/${o.metadata.name}/${what}`, [
      <Link key="n" to={`/edit/Quota/${o.metadata.tenant}/${o.metadata.name}`}>{o.metadata.tenant}</Link>, t(`quota.${what.toLowerCase()}` as Key), <Progress key="p" className="share" size={ProgressSize.sm} aria-label={`${o.metadata.tenant} ${what}`} value={percent} label={`${used}/${most}`} valueText={`${used}/${most}`} measureLocation={ProgressMeasureLocation.outside} variant={used >= most ? 'danger' : percent >= 80 ? 'warning' : undefined} />, <span key="x" className="dim">{o.spec?.note}</span>,
    ]] as [string, ReactNode[]]]
  }))
  return <Sheet label={t('admin.quotas')} head={[t('col.tenant'), t('quota.what'), t('col.used'), t('quota.note')]} rows={rows} />
}
