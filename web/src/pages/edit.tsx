import { Alert, Button, Card, CardBody, CardTitle, Form, FormGroup, FormHelperText, Grid, GridItem, HelperText, HelperTextItem, Label, PageSection, TextArea, TextInput } from '@patternfly/react-core'
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { useState } from 'react'
import { Link, useNavigate, useParams } from 'react-router'
import { parseAllDocuments, parseDocument, stringify } from 'yaml'
import { apply, call, get, query, send, type ApplyResult, type RolloutPlan, type Thing } from '../api/client'
import { t, type Key } from '../i18n'
import { Head, lines, Loading, pairs, Problem, Refusal, unpairs } from '../ui/bits'
import { Sheet } from '../ui/sheet'
import { PlanWaves } from '../ui/plan'

const plurals: Record<string, string> = { Tenant: 'tenants', Site: 'sites', Config: 'configs', Secret: 'secrets', App: 'apps', Release: 'releases', FlowPolicy: 'flowpolicies', Fleet: 'fleets', NetworkPolicy: 'networkpolicies', Device: 'devices', JoinToken: 'jointokens', ServiceAccount: 'serviceaccounts', RoleBinding: 'rolebindings', ExpectedDevice: 'expecteddevices', Rollout: 'rollouts', Budget: 'budgets', PricePlan: 'priceplans', BillingProfile: 'billingprofiles', Quota: 'quotas', TrainingJob: 'trainingjobs' }
const revisioned = new Set(['Config', 'Secret', 'App', 'Release', 'FlowPolicy', 'Fleet', 'NetworkPolicy'])
const compose = 'services:\n  web:\n    image: web:1\n    restart: always\n'
const starts: Record<string, Record<string, unknown>> = {
  App: { compose }, Fleet: { selector: { matchLabels: {} }, apps: [] }, RoleBinding: { role: 'viewer', subjects: [{ serviceAccount: '' }] }, Secret: { data: {} }, Config: { env: {} },
  Rollout: { target: { fleet: '' }, change: [{ kind: 'App', name: '' }], waves: [{ name: 'canary', devices: 1, approve: true }, { percent: 20 }], health: { soak: '5m', timeout: '15m' }, onFailure: 'rollback' },
  Budget: { amount: '100', thresholds: [50, 80, 100] }, Quota: { devices: 100, apps: 100 }, TrainingJob: { trainer: 'autoencoder', data: '', ranks: 1, resources: { cpus: 1, memoryBytes: 1073741824 }, timeLimit: '2h', model: '' },
}

interface Field { name: Key; path: string[]; form: 'text' | 'list' | 'pairs' | 'block' | 'number' }
const fields: Record<string, Field[]> = {
  App: [{ name: 'edit.compose', path: ['compose'], form: 'block' }],
  Fleet: [{ name: 'edit.selector', path: ['selector', 'matchLabels'], form: 'pairs' }, { name: 'edit.apps', path: ['apps'], form: 'list' }, { name: 'edit.configs', path: ['configs'], form: 'list' }, { name: 'edit.secrets', path: ['secrets'], form: 'list' }],
  Site: [{ name: 'edit.display', path: ['displayName'], form: 'text' }, { name: 'edit.address', path: ['address'], form: 'text' }, { name: 'edit.lat', path: ['latitude'], form: 'number' }, { name: 'edit.long', path: ['longitude'], form: 'number' }],
  Device: [{ name: 'col.site', path: ['site'], form: 'text' }], Tenant: [{ name: 'edit.display', path: ['displayName'], form: 'text' }],
}

// textOf is what a person may write of an object: without what the core says.
function textOf(o: Thing): string {
  const { name, tenant, labels } = o.metadata
  return stringify({ apiVersion: o.apiVersion, kind: o.kind, metadata: { name, ...(tenant && o.kind !== 'Tenant' ? { tenant } : {}), ...(labels ? { labels } : {}) }, spec: o.spec ?? {} }, { lineWidth: 0 })
}

// planWaves asks what a Rollout among the objects would do: which devices, in which wave.
async function planWaves(text: string, tenant?: string): Promise<RolloutPlan | undefined> {
  const one = parseAllDocuments(text).map((d) => d.toJS() as Thing | null).find((d) => d?.kind === 'Rollout')
  if (!one) return undefined
  return await (await send('POST', query('/api/v1/rollout-plan', { tenant: one.metadata.tenant ?? tenant }), text, 'application/yaml')).json() as RolloutPlan
}

export default function Edit() {
  const { kind = '', tenant, name } = useParams()
  const old = useQuery({ queryKey: ['object', kind, tenant, name], enabled: !!name && !!plurals[kind], queryFn: ({ signal }) => get<Thing>(`/api/v1/${plurals[kind]}/${name}`, { tenant }, signal) })
  const title = name ? t('edit.title', { name: `${kind} ${name}` }) : t('edit.new', { kind })
  if (!plurals[kind]) return <><Head title={kind} /><Problem error={null} /></>
  if (name && old.error && !old.data) return <><Head title={title} /><Problem error={old.error} /></>
  if (name && !old.data) return <><Head title={title} /><Loading /></>
  const first = old.data ? textOf(old.data) : textOf({ apiVersion: 'tributary/v1', kind, metadata: { name: '' }, spec: starts[kind] ?? {} })
  return <Editor key={`${kind}/${tenant}/${name}`} title={title} kind={kind} first={first} made={!!name} tenant={tenant} name={name} />
}

function Editor({ title, kind, first, made, tenant, name }: { title: string; kind: string; first: string; made: boolean; tenant?: string; name?: string }) {
  const [text, setText] = useState(first)
  const [planned, setPlanned] = useState<{ text: string; results: ApplyResult[]; waves?: RolloutPlan } | null>(null)
  const [done, setDone] = useState(false)
  const client = useQueryClient()
  const go = useNavigate()
  const plan = useMutation({ mutationFn: async () => ({ results: await apply(text, true), waves: await planWaves(text, tenant) }), onSuccess: (p) => { setPlanned({ text, ...p }); setDone(false) } })
  const write = useMutation({ mutationFn: () => apply(text, false), onSuccess: () => { setDone(true); setPlanned(null); void client.invalidateQueries() } })
  const remove = useMutation({ mutationFn: () => call('DELETE', query(`/api/v1/${plurals[kind]}/${name}`, { tenant })), onSuccess: () => { void client.invalidateQueries(); void go(-1) } })
  const change = (to: string) => { setText(to); setPlanned(null); setDone(false); plan.reset(); write.reset() }
  let bad = ''
  let value: Thing | null = null
  const docs = parseAllDocuments(text) // one object has a form; more of them, with what they refer to, are YAML alone
  for (const d of docs) bad ||= d.errors[0]?.message.split('\n')[0] ?? ''
  if (!bad && docs.length === 1) value = docs[0]!.toJS() as Thing
  const ready = planned !== null && planned.text === text
  return (
    <>
      <Head title={title} aside={<div className="acts">
        {made && revisioned.has(kind) && <Button variant="link" component={(p) => <Link {...p} to={`/history/${kind}/${tenant}/${name}`} />}>{t('tab.history')}</Button>}
        {made && kind !== 'Device' && <Button variant="link" isDanger isLoading={remove.isPending} onClick={() => { if (confirm(t('act.delete.sure', { name: name ?? '' }))) remove.mutate() }}>{t('act.delete')}</Button>}
        <Button variant="secondary" isDisabled={bad !== ''} isLoading={plan.isPending} onClick={() => plan.mutate()}>{t('edit.plan')}</Button>
        <Button isDisabled={!ready} isLoading={write.isPending} onClick={() => write.mutate()}>{t('edit.apply')}</Button>
      </div>} />
      <PageSection>
        <Grid hasGutter>
          <GridItem span={12}><div aria-live="polite">
            <Refusal error={plan.error ?? write.error ?? remove.error} />
            {bad && <Alert component="p" isInline variant="warning" title={t('edit.bad', { why: bad })} />}
            {done && <Alert component="p" isInline variant="success" title={t('edit.applied')} />}
            {ready ? <div className="stack"><Plan results={planned.results} />{planned.waves && <PlanWaves of={planned.waves} />}</div> : !done && <Alert component="p" isInline isPlain variant="info" title={t('edit.must')} />}
          </div></GridItem>
          <GridItem span={12} lg={6}><Card isFullHeight><CardTitle component="h2">{t('edit.form')}</CardTitle><CardBody>{!value ? <p className="dim">{t('edit.kindother')}</p> : <Fields kind={kind} text={text} value={value} made={made} change={change} />}</CardBody></Card></GridItem>
          <GridItem span={12} lg={6}><Card isFullHeight><CardTitle component="h2">{t('edit.yaml')}</CardTitle><CardBody><TextArea className="code" aria-label={t('edit.yaml')} spellCheck={false} value={text} onChange={(_, v) => change(v)} resizeOrientation="vertical" rows={Math.min(40, Math.max(16, text.split('\n').length + 1))} /></CardBody></Card></GridItem>
        </Grid>
      </PageSection>
    </>
  )
}

// Fields writes into the YAML, whose comments and order stay.
function Fields({ kind, text, value, made, change }: { kind: string; text: string; value: Thing; made: boolean; change: (text: string) => void }) {
  const set = (path: string[], to: unknown) => {
    const doc = parseDocument(text)
    if (to === undefined || to === '') doc.deleteIn(path)
    else doc.setIn(path, to)
    change(doc.toString({ lineWidth: 0 }))
  }
  const at = (path: string[]): unknown => path.reduce<unknown>((v, k) => (v as Record<string, unknown> | undefined)?.[k], value)
  const area = (f: Field, shown: string, to: (v: string) => unknown) => <Draft key={f.path.join('.')} id={f.path.join('-')} label={t(f.name)} shown={shown} rows={f.form === 'block' ? 14 : 3} change={(v) => set(['spec', ...f.path], to(v))} />
  return (
    <Form onSubmit={(e) => e.preventDefault()}>
      <FormGroup label={t('col.name')} fieldId="name" isRequired><TextInput id="name" value={value.metadata?.name ?? ''} isDisabled={made} onChange={(_, v) => set(['metadata', 'name'], v)} /></FormGroup>
      {kind !== 'Tenant' && <FormGroup label={t('col.tenant')} fieldId="tenant"><TextInput id="tenant" value={value.metadata?.tenant ?? ''} placeholder="default" isDisabled={made} onChange={(_, v) => set(['metadata', 'tenant'], v)} /></FormGroup>}
      <Draft id="labels" label={t('edit.labels')} shown={unpairs(value.metadata?.labels)} rows={2} change={(v) => set(['metadata', 'labels'], lines(v).length ? pairs(v) : undefined)} />
      {(fields[kind] ?? []).map((f) => {
        const now = at(['spec', ...f.path])
        switch (f.form) {
          case 'pairs': return area(f, unpairs(now as Record<string, string> | undefined), pairs)
          case 'list': return area(f, ((now as string[] | undefined) ?? []).join('\n'), (v) => lines(v).length ? lines(v) : undefined)
          case 'block': return area(f, String(now ?? ''), (v) => v)
          default: return <FormGroup key={f.path.join('.')} label={t(f.name)} fieldId={f.path.join('-')}><TextInput id={f.path.join('-')} type={f.form === 'number' ? 'number' : 'text'} value={String(now ?? '')} onChange={(_, v) => set(['spec', ...f.path], f.form === 'number' && v !== '' ? Number(v) : v)} /></FormGroup>
        }
      })}
      <HelperText><HelperTextItem>{kind === 'Secret' ? t('edit.secrets.write') : t('edit.kindother')}</HelperTextItem></HelperText>
    </Form>
  )
}

// Draft keeps what is being typed, which may not yet mean what it will.
function Draft({ id, label, shown, rows, change }: { id: string; label: string; shown: string; rows: number; change: (text: string) => void }) {
  const [text, setText] = useState(shown)
  const [said, setSaid] = useState(shown)
  if (shown !== said) { setSaid(shown); if (lines(text).join('\n') !== lines(shown).join('\n')) setText(shown) }
  return <FormGroup label={label} fieldId={id}><TextArea id={id} className="code" spellCheck={false} rows={rows} resizeOrientation="vertical" value={text} onChange={(_, v) => { setText(v); change(v) }} /></FormGroup>
}

function Plan({ results }: { results: ApplyResult[] }) {
  const color = { created: 'green', configured: 'blue', unchanged: 'grey', unknown: 'orange' } as const
  const show = (v: unknown) => v === undefined ? '' : <pre className="value">{typeof v === 'string' ? v : stringify(v).trim()}</pre>
  return (
    <Card><CardTitle component="h2">{t('edit.planned')}</CardTitle><CardBody>
      {results.map((r) => {
        const action = r.action as keyof typeof color
        return (
          <div key={`${r.kind}/${r.tenant}/${r.name}`}>
            <p><Label isCompact color={color[action]}>{t(`edit.${action}`)}</Label> <b>{r.kind}</b> {r.tenant}/{r.name}</p>
            {(r.warnings ?? []).map((w) => <Alert component="p" key={w} isInline isPlain variant="warning" title={w} />)}
            {(r.changes ?? []).length > 0 && <Sheet label={t('edit.planned')} head={[t('edit.field'), t('edit.before'), t('edit.after')]} rows={r.changes!.map((c) => [c.path, [<code key="p">{c.path}</code>, show(c.old), show(c.new)]])} />}
          </div>
        )
      })}
      {results.every((r) => r.action === 'unchanged') && <FormHelperText><HelperText><HelperTextItem>{t('edit.nothing')}</HelperTextItem></HelperText></FormHelperText>}
    </CardBody></Card>
  )
}
