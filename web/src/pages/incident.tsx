import { Alert, Button, Card, CardBody, CardTitle, DescriptionList, DescriptionListDescription, DescriptionListGroup, DescriptionListTerm, FormGroup, Grid, GridItem, Modal, ModalBody, ModalFooter, ModalHeader, PageSection, TextArea } from '@patternfly/react-core'
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { useState, type ReactNode } from 'react'
import { Link, useParams } from 'react-router'
import { apply, get, type Incident } from '../api/client'
import { t } from '../i18n'
import { Ago, Head, Loading, Problem, Refusal } from '../ui/bits'
import { causeName, IncidentState, stateOf } from './incidents'

export default function IncidentPage() {
  const { tenant = 'default', name = '' } = useParams()
  const one = useQuery({ queryKey: ['object', 'Incident', tenant, name], queryFn: ({ signal }) => get<Incident>(`/api/v1/incidents/${name}`, { tenant }, signal), meta: { kinds: ['Incident'] } })
  const [asked, setAsked] = useState<'acknowledge' | 'close' | null>(null)
  const [note, setNote] = useState('')
  const client = useQueryClient()
  // Only what people say of it is written: what the core found meanwhile stays.
  const say = useMutation({ mutationFn: (change: NonNullable<Incident['spec']>) => apply(JSON.stringify({ apiVersion: 'tributary/v1', kind: 'Incident', metadata: { name, tenant }, spec: { ...one.data?.spec, ...change, ...(note ? { note } : {}) } }), false), onSuccess: () => { void client.invalidateQueries() } })
  if (!one.data) return <><Head title={name} />{one.error ? <Problem error={one.error} again={() => { void one.refetch() }} /> : <Loading />}</>
  const s = one.data.status
  const state = stateOf(one.data)
  const title = asked === 'close' ? t('live.close') : t('inc.acknowledge')
  const facts: [string, ReactNode][] = [[t('inc.cause'), causeName(s?.cause)], [t('roll.since'), <Ago key="s" time={s?.since} />], [t('inc.last'), <Ago key="l" time={s?.last} />], [t('inc.findings'), s?.findings ?? 0], [t('over.sites'), (s?.sites ?? []).join(', ') || t('dash')]]
  if (s?.subject) facts.splice(1, 0, [t('inc.number'), <code key="c">{s.subject}</code>])
  if (s?.closed) facts.push([t('inc.closed.since'), <span key="c"><Ago time={s.closed} /> {s.why}</span>])
  return (
    <>
      <Head title={name} aside={state !== 'closed' && <div className="acts">
        {state === 'open' && <Button onClick={() => { setNote(one.data?.spec?.note ?? ''); setAsked('acknowledge') }}>{t('inc.acknowledge')}</Button>}
        <Button variant="secondary" onClick={() => { setNote(one.data?.spec?.note ?? ''); setAsked('close') }}>{t('live.close')}</Button>
      </div>}><p className="sub"><IncidentState of={one.data} /><Link to="/incidents">{t('nav.incidents')}</Link><span className="dim">{tenant}</span></p></Head>
      <PageSection><Grid hasGutter>
        <GridItem span={12}><div aria-live="polite"><Refusal error={say.error} />
          <Alert component="p" isInline variant={state === 'closed' ? 'success' : state === 'open' ? 'danger' : 'warning'} title={s?.message ?? ''} />
          {one.data.spec?.note && <Alert component="p" isInline isPlain variant="info" title={t('inc.note', { note: one.data.spec.note })} />}
        </div></GridItem>
        {s?.link && <GridItem span={12}><Card><CardTitle component="h2">{t('inc.link')}</CardTitle><CardBody><div className="cut-link"><span className="end">{s.link.parent === 'core' ? t('over.core') : s.link.parent ?? t('inc.other')}</span><span className={`line ${state === 'closed' ? '' : 'line-cut'}`} /><span className="end">{s.link.child ? <Link to={`/devices/${tenant}/${s.link.child}`}>{s.link.child}</Link> : t('inc.other')}</span><span className="dim">{t('inc.behind', { n: s.count })}</span></div></CardBody></Card></GridItem>}
        <GridItem span={12} lg={5}><Card isFullHeight><CardTitle component="h2">{t('box.facts')}</CardTitle><CardBody><DescriptionList isHorizontal isCompact>{facts.map(([k, v]) => <DescriptionListGroup key={k}><DescriptionListTerm>{k}</DescriptionListTerm><DescriptionListDescription>{v}</DescriptionListDescription></DescriptionListGroup>)}</DescriptionList></CardBody></Card></GridItem>
        <GridItem span={12} lg={7}><Card isFullHeight><CardTitle component="h2">{t('dev.count', { n: s?.count ?? 0 })}</CardTitle><CardBody><div className="labels">{(s?.devices ?? []).map((d) => <Link key={d} to={`/devices/${tenant}/${d}`}>{d}</Link>)}</div>{(s?.count ?? 0) > (s?.devices?.length ?? 0) && <p className="dim">{t('over.more', { n: s!.count - (s?.devices?.length ?? 0) })}</p>}</CardBody></Card></GridItem>
      </Grid></PageSection>
      {asked && (
        <Modal isOpen variant="small" onClose={() => setAsked(null)} aria-label={title}>
          <ModalHeader title={title} />
          <ModalBody><FormGroup label={t('inc.note.label')} fieldId="note"><TextArea id="note" value={note} rows={3} onChange={(_, v) => setNote(v)} autoFocus /></FormGroup></ModalBody>
          <ModalFooter><Button onClick={() => { say.mutate(asked === 'close' ? { closed: true } : { acknowledged: true }); setAsked(null) }}>{title}</Button><Button variant="link" onClick={() => setAsked(null)}>{t('act.cancel')}</Button></ModalFooter>
        </Modal>
      )}
    </>
  )
}
