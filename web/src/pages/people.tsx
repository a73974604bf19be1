import { Alert, Button, Card, CardBody, Checkbox, Form, Label, Modal, ModalBody, ModalFooter, ModalHeader, PageSection } from '@patternfly/react-core'
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { useState } from 'react'
import { Link } from 'react-router'
import { call, get, type Person, type Thing, type Who } from '../api/client'
import { t } from '../i18n'
import { Ago, Empty, Head, Refusal, Shown, useThings } from '../ui/bits'
import { Field, Once, Wrong } from '../ui/secret'
import { Sheet } from '../ui/sheet'

type Invited = { person?: Person; token: string }
type Doing = { what: 'disable' | 'reset' | 'leave'; person: Person } | { what: 'create' } | null
const shown = (p: Person) => p.login || p.name || p.uid

export default function People() {
  const client = useQueryClient()
  const [doing, setDoing] = useState<Doing>(null)
  const [said, setSaid] = useState('')
  const all = useQuery({ queryKey: ['people'], queryFn: ({ signal }) => get<{ items: Person[] | null }>('/api/v1/people', {}, signal) })
  const who = useQuery({ queryKey: ['whoami'], queryFn: () => get<Who>('/api/v1/whoami'), meta: { kinds: ['RoleBinding', 'ServiceAccount'] } })
  const bindings = useThings('rolebindings', 'RoleBinding')
  const again = () => { void client.invalidateQueries({ queryKey: ['people'] }) }
  const enable = useMutation({ mutationFn: (p: Person) => call('PATCH', `/api/v1/people/${p.uid}`, { disabled: false }), onSuccess: (_, p) => { setSaid(t('people.enabled', { name: shown(p) })); again() } })
  const begin = (d: Doing) => { setSaid(''); setDoing(d) }
  const done = (text: string) => { setDoing(null); setSaid(text); again() }
  return (
    <>
      <Head title={t('nav.people')} aside={all.data && <Button onClick={() => begin({ what: 'create' })}>{t('people.create')}</Button>} />
      <PageSection>
        <div aria-live="polite">{said && <Alert component="p" isInline variant="success" title={said} className="finding" />}<Refusal error={enable.error} /></div>
        <Card><CardBody><Shown of={all}>{(l) => !l.items?.length ? <Empty title={t('people.none')} body={t('people.none.body')}><Button variant="secondary" onClick={() => begin({ what: 'create' })}>{t('people.create')}</Button></Empty> : (
          <Sheet label={t('nav.people')} head={[t('login.name'), t('people.name'), t('col.state'), t('people.roles'), t('people.uid'), t('people.created'), t('col.actions')]} rows={l.items.map((p) => [p.uid, [
            <b key="l">{p.login ?? t('dash')}</b>, <span key="n">{p.name}{p.email && <span className="dim block">{p.email}</span>}</span>, <States key="s" of={p} />, <Roles key="r" uid={p.uid} all={bindings.data?.items ?? []} />, <code key="u">{p.uid}</code>, <Ago key="c" time={p.created} />,
            <span key="a" className="acts">
              {p.disabled ? <Button size="sm" variant="link" isInline onClick={() => enable.mutate(p)} aria-label={`${t('people.enable')} ${shown(p)}`}>{t('people.enable')}</Button> : p.uid !== who.data?.person && <Button size="sm" variant="link" isInline isDanger onClick={() => begin({ what: 'disable', person: p })} aria-label={`${t('people.disable')} ${shown(p)}`}>{t('people.disable')}</Button>}
              {p.login && <Button size="sm" variant="link" isInline onClick={() => begin({ what: 'reset', person: p })} aria-label={`${t('people.reset')} ${shown(p)}`}>{t('people.reset')}</Button>}
              <Button size="sm" variant="link" isInline onClick={() => begin({ what: 'leave', person: p })} aria-label={`${t('people.leave')} ${shown(p)}`}>{t('people.leave')}</Button>
            </span>,
          ]])} />
        )}</Shown>{all.data && <p className="dim people-note">{t('people.note')} <Link to="/edit/RoleBinding">{t('edit.new', { kind: 'RoleBinding' })}</Link></p>}</CardBody></Card>
      </PageSection>
      {doing?.what === 'create' && <Create close={() => { setDoing(null); again() }} />}
      {doing?.what === 'reset' && <Reset person={doing.person} close={() => { setDoing(null); again() }} />}
      {doing?.what === 'disable' && <Sure title={t('people.disable.sure', { name: shown(doing.person) })} body={t('people.disable.body')} verb={t('people.disable')} close={() => setDoing(null)} act={() => call('PATCH', `/api/v1/people/${doing.person.uid}`, { disabled: true })} done={() => done(t('people.disabled', { name: shown(doing.person) }))} />}
      {doing?.what === 'leave' && <Sure title={t('people.leave.sure', { name: shown(doing.person) })} body={t('people.leave.body')} verb={t('people.leave')} close={() => setDoing(null)} act={() => call('DELETE', `/api/v1/people/${doing.person.uid}/sessions`)} done={() => done(t('people.left', { name: shown(doing.person) }))} />}
    </>
  )
}

function States({ of: p }: { of: Person }) {
  return (
    <span className="labels">
      {p.disabled && <Label isCompact color="red">{t('people.is.disabled')}</Label>}
      {p.login && !p.password && <Label isCompact color="orange">{t('people.is.invited')}</Label>}
      {p.secondFactor ? <Label isCompact color="green">{t('people.is.safe')}</Label> : p.password && <Label isCompact variant="outline">{t('people.is.plain')}</Label>}
    </span>
  )
}

function Roles({ uid, all }: { uid: string; all: Thing[] }) {
  const of = all.filter((o) => (o.spec as { subjects?: { person?: string }[] } | undefined)?.subjects?.some((s) => s.person === uid))
  if (of.length === 0) return <span className="dim">{t('people.roles.none')}</span>
  return <span className="labels">{of.map((o) => <Link key={`${o.metadata.tenant}/${o.metadata.name}`} to={`/edit/RoleBinding/${o.metadata.tenant}/${o.metadata.name}`}>{String(o.spec?.role)} <span className="dim">{o.metadata.tenant}</span></Link>)}</span>
}

// Handed is what the administrator gives to the person, by another way than this console.
function Handed({ name, token, close }: { name: string; token: string; close: () => void }) {
  return (
    <Modal isOpen variant="medium" aria-label={t('people.token')}>
      <ModalHeader title={t('people.token')} description={t('people.token.body', { name })} />
      <ModalBody><Form onSubmit={(e) => e.preventDefault()}><Once label={t('people.link')} text={`${location.origin}/invited#${encodeURIComponent(token)}`} help={t('people.link.help')} /><Once label={t('setup.token')} text={token} /></Form></ModalBody>
      <ModalFooter><Button onClick={close}>{t('people.token.kept')}</Button></ModalFooter>
    </Modal>
  )
}

function Create({ close }: { close: () => void }) {
  const [v, set] = useState({ login: '', name: '', email: '' })
  const create = useMutation({ mutationFn: () => call<Invited>('POST', '/api/v1/people', Object.fromEntries(Object.entries(v).map(([k, x]) => [k, x.trim()]).filter(([, x]) => x !== ''))) })
  if (create.data) return <Handed name={v.login} token={create.data.token} close={close} />
  return (
    <Modal isOpen variant="small" onClose={close} aria-label={t('people.create')}>
      <ModalHeader title={t('people.create')} description={t('people.create.body')} />
      <ModalBody>
        <Wrong error={create.error} />
        <Form id="person" onSubmit={(e) => { e.preventDefault(); create.mutate() }}>
          <Field id="p-login" label={t('login.name')} help={t('people.login.help')} value={v.login} set={(login) => set({ ...v, login })} isRequired autoFocus autoComplete="off" autoCapitalize="none" spellCheck="false" maxLength={64} />
          <Field id="p-name" label={t('people.name')} value={v.name} set={(name) => set({ ...v, name })} autoComplete="off" maxLength={200} />
          <Field id="p-email" label={t('people.email')} help={t('people.email.help')} type="email" value={v.email} set={(email) => set({ ...v, email })} autoComplete="off" maxLength={254} />
        </Form>
      </ModalBody>
      <ModalFooter><Button type="submit" form="person" isLoading={create.isPending} isDisabled={create.isPending || v.login.trim() === ''}>{t('people.create')}</Button><Button variant="link" onClick={close}>{t('act.cancel')}</Button></ModalFooter>
    </Modal>
  )
}

function Reset({ person, close }: { person: Person; close: () => void }) {
  const [factor, setFactor] = useState(false)
  const reset = useMutation({ mutationFn: () => call<Invited>('POST', `/api/v1/people/${person.uid}/reset`, { secondFactor: factor }) })
  if (reset.data) return <Handed name={shown(person)} token={reset.data.token} close={close} />
  return (
    <Modal isOpen variant="small" onClose={close} aria-label={t('people.reset')}>
      <ModalHeader title={t('people.reset.sure', { name: shown(person) })} description={t('people.reset.body')} />
      <ModalBody><Wrong error={reset.error} /><Checkbox id="p-factor" label={t('people.reset.factor')} description={t('people.reset.factor.body')} isChecked={factor} onChange={(_, on) => setFactor(on)} /></ModalBody>
      <ModalFooter><Button variant="danger" isLoading={reset.isPending} isDisabled={reset.isPending} onClick={() => reset.mutate()}>{t('people.reset')}</Button><Button variant="link" onClick={close}>{t('act.cancel')}</Button></ModalFooter>
    </Modal>
  )
}

function Sure({ title, body, verb, close, act, done }: { title: string; body: string; verb: string; close: () => void; act: () => Promise<unknown>; done: () => void }) {
  const go = useMutation({ mutationFn: act, onSuccess: done })
  return (
    <Modal isOpen variant="small" onClose={close} aria-label={title}>
      <ModalHeader title={title} description={body} />
      {Boolean(go.error) && <ModalBody><Wrong error={go.error} /></ModalBody>}
      <ModalFooter><Button variant="danger" isLoading={go.isPending} isDisabled={go.isPending} onClick={() => go.mutate()}>{verb}</Button><Button variant="link" onClick={close}>{t('act.cancel')}</Button></ModalFooter>
    </Modal>
  )
}
