import { Alert, Card, CardBody, CardTitle, FormSelect, FormSelectOption, Grid, GridItem, Label, PageSection, Progress, ProgressMeasureLocation, ProgressSize, TextInput, ToggleGroup, ToggleGroupItem, Toolbar, ToolbarContent, ToolbarItem } from '@patternfly/react-core'
import { useQuery } from '@tanstack/react-query'
import { Link, useSearchParams } from 'react-router'
import { Fault, get, type Budget, type Cost, type InvoiceEntry } from '../api/client'
import { t, type Key } from '../i18n'
import { Empty, Head, Shown, useThings } from '../ui/bits'
import { money } from '../ui/money'
import { Sheet } from '../ui/sheet'

const dimensions: [string, Key][] = [['app', 'col.apps'], ['site', 'over.sites'], ['fleet', 'nav.fleets'], ['device', 'col.devices'], ['service', 'col.services'], ['line', 'cost.line']]
const shown = 30

export default function Costs() {
  const [params, setParams] = useSearchParams()
  const by = params.get('by') ?? 'app'
  const period = params.get('period') ?? ''
  const tenant = params.get('tenant') ?? '*'
  const set = (k: string, v: string) => setParams((p) => { const n = new URLSearchParams(p); if (v) n.set(k, v); else n.delete(k); return n }, { replace: true })
  // What was used is no object, of which the core would tell that it changed: it is asked for again.
  const cost = useQuery({ queryKey: ['cost', tenant, by, period], queryFn: ({ signal }) => get<{ items: Cost[] }>('/api/v1/cost', { tenant, by, period: period || undefined }, signal), meta: { kinds: ['PricePlan', 'BillingProfile'] }, refetchInterval: 15_000, placeholderData: (old) => old })
  const invoices = useQuery({ queryKey: ['invoices'], queryFn: ({ signal }) => get<{ items: InvoiceEntry[] }>('/api/v1/invoices', { tenant: '*' }, signal), meta: { kinds: ['BillingProfile', 'Budget'] }, refetchInterval: 15_000 })
  const budgets = useThings<Budget>('budgets', 'Budget')
  const tenants = [...new Set((cost.data?.items ?? []).map((c) => c.tenant))]
  return (
    <>
      <Head title={t('nav.costs')} />
      <PageSection>
        <Toolbar><ToolbarContent>
          <ToolbarItem><ToggleGroup aria-label={t('cost.by')}>{dimensions.map(([d, name]) => <ToggleGroupItem key={d} text={t(name)} buttonId={`by-${d}`} isSelected={by === d} onChange={() => set('by', d)} />)}</ToggleGroup></ToolbarItem>
          <ToolbarItem><TextInput type="month" aria-label={t('cost.period')} value={period || (cost.data?.items[0]?.period ?? '').slice(0, 7)} onChange={(_, v) => set('period', v)} /></ToolbarItem>
          {(tenants.length > 1 || tenant !== '*') && <ToolbarItem><FormSelect aria-label={t('col.tenant')} value={tenant} onChange={(_, v) => set('tenant', v === '*' ? '' : v)}><FormSelectOption value="*" label={t('cost.alltenants')} />{[...new Set([...tenants, ...(tenant === '*' ? [] : [tenant])])].map((n) => <FormSelectOption key={n} value={n} label={n} />)}</FormSelect></ToolbarItem>}
        </ToolbarContent></Toolbar>
        <Grid hasGutter>
          <GridItem span={12} xl={7}><Shown of={cost}>{(c) => c.items.length === 0 ? <Card><CardBody><Empty title={t('cost.none')} body={t('cost.none.body')} /></CardBody></Card> : <div className={`stack ${cost.isPlaceholderData ? 'stale' : ''}`}>{c.items.map((i) => <Spent key={i.tenant} of={i} />)}</div>}</Shown></GridItem>
          <GridItem span={12} xl={5}><Card><CardTitle component="h2">{t('cost.budgets')}</CardTitle><CardBody><Shown of={budgets}>{(l) => <Budgets all={l.items} />}</Shown><p><Link to="/edit/Budget">{t('edit.new', { kind: 'Budget' })}</Link></p></CardBody></Card></GridItem>
          <GridItem span={12}><Card><CardTitle component="h2">{t('cost.invoices')}</CardTitle><CardBody><Shown of={invoices}>{(l) => <Invoices all={l.items} />}</Shown></CardBody></Card></GridItem>
        </Grid>
      </PageSection>
    </>
  )
}

function Spent({ of }: { of: Cost }) {
  const rows = [...(of.rows ?? [])].sort((a, b) => Number(b.net) - Number(a.net))
  const most = Math.max(0, ...rows.map((r) => Math.abs(Number(r.net))))
  return (
    <Card>
      <CardTitle component="h2"><span className="head-row"><span>{of.tenant} <span className="dim">{of.period}</span></span><span className="sum">{money(of.net, of.currency)}</span></span></CardTitle>
      <CardBody>
        {rows.length === 0 && <p className="dim">{t('cost.nothing')}</p>}
        <ul className="bars">{rows.slice(0, shown).map((r) => (
          <li key={r.name}><span className="bar-name">{r.name || t('cost.rest')}</span><span className="bar"><i style={{ width: `${most ? (100 * Math.abs(Number(r.net))) / most : 0}%` }} /></span><span className="amount">{money(r.net, of.currency)}</span></li>
        ))}</ul>
        {rows.length > shown && <p className="dim">{t('over.more', { n: rows.length - shown })}</p>}
        <Forecasts of={of} />
        {(of.blockers ?? []).length > 0 && <Alert component="p" isInline isExpandable variant="warning" title={t('cost.blocked', { n: of.blockers!.length })} className="blockers"><ul>{of.blockers!.map((b, i) => <li key={i}><b>{b.what}</b> {b.subject && <code>{b.subject}</code>} <span className="dim">{b.remedy}</span></li>)}</ul></Alert>}
      </CardBody>
    </Card>
  )
}

function Forecasts({ of }: { of: Cost }) {
  const forecast = useQuery({ queryKey: ['forecast', of.tenant], queryFn: ({ signal }) => get<{ expected: string; currency: string; period: string; errorPercent: number; tried: number }>('/api/v1/forecast', { tenant: of.tenant }, signal), retry: (n, e) => n < 2 && !(e instanceof Fault), refetchInterval: 60_000 })
  const f = forecast.data
  if (!f || f.period !== of.period) return null
  return <p className="dim forecast">{t('cost.forecast', { sum: money(f.expected, f.currency) })}{f.tried > 0 && ` · ${t('cost.forecast.error', { n: f.errorPercent.toFixed(0) })}`}</p>
}

function Budgets({ all }: { all: Budget[] }) {
  if (all.length === 0) return <Empty title={t('cost.nobudgets')} body={t('cost.nobudgets.body')} />
  return (
    <ul className="budgets">{all.map((b) => {
      const s = b.status
      const percent = s?.percent ?? 0
      const marks = b.spec?.thresholds?.length ? b.spec.thresholds : [50, 80, 100]
      const of = [b.spec?.site, b.spec?.fleet, b.spec?.device, b.spec?.app].filter(Boolean).join(', ')
      return (
        <li key={`${b.metadata.tenant}/${b.metadata.name}`}>
          <div className="head-row"><span><Link to={`/edit/Budget/${b.metadata.tenant}/${b.metadata.name}`}>{b.metadata.name}</Link> <span className="dim">{[b.metadata.tenant, of].filter(Boolean).join(' · ')}</span></span><span className="amount">{money(s?.spent ?? '0', s?.currency)} <span className="dim">/ {b.spec?.amount}</span></span></div>
          <Progress size={ProgressSize.sm} aria-label={b.metadata.name} value={Math.min(100, percent)} label={`${percent} %`} valueText={`${percent} %`} measureLocation={ProgressMeasureLocation.outside} variant={percent >= 100 ? 'danger' : percent >= Math.min(...marks.filter((m) => m >= 80), 100) ? 'warning' : undefined} />
          <span className="labels">{marks.map((m) => <Label key={m} isCompact color={s?.fired?.includes(m) ? (m >= 100 ? 'red' : 'orange') : 'grey'}>{`${m} %`}</Label>)}</span>
          {s?.problem && <Alert component="p" isInline isPlain variant="warning" title={s.problem} />}
        </li>
      )
    })}</ul>
  )
}

function Invoices({ all }: { all: InvoiceEntry[] }) {
  if (all.length === 0) return <Empty title={t('cost.noinvoices')} body={t('cost.noinvoices.body')} />
  return <Sheet label={t('cost.invoices')} head={[t('inv.number'), t('col.tenant'), t('cost.period'), t('inv.issued'), t('inv.net'), t('inv.tax'), t('inv.gross')]} rows={[...all].reverse().map((i) => [i.number, [
    <span key="n"><Link to={`/invoices/${i.number}`}>{i.number}</Link> {i.kind === 'credit-note' && <Label isCompact color="orange">{t('inv.credit')}</Label>}</span>, i.tenant, i.period, i.issued,
    ...[i.net, i.tax, i.gross].map((m, n) => <span key={n} className="amount">{money(m, i.currency)}</span>),
  ]])} />
}
