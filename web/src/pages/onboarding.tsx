import { Alert, Button, Card, CardBody, CardTitle, Form, FormGroup, FormHelperText, Grid, GridItem, HelperText, HelperTextItem, Modal, ModalBody, ModalFooter, ModalHeader, PageSection, TextArea, TextInput } from '@patternfly/react-core'
import { useMutation, useQueryClient } from '@tanstack/react-query'
import { useState } from 'react'
import { Link } from 'react-router'
import { call, query, type Device, type ExpectedDevice } from '../api/client'
import { t } from '../i18n'
import { Ago, Empty, Head, Labels, pairs, Refusal, Shown, useFound, useThings } from '../ui/bits'
import { Sheet } from '../ui/sheet'

export default function Onboarding() {
  const [adding, setAdding] = useState(false)
  const [said, setSaid] = useState('')
  const client = useQueryClient()
  const expected = useFound<ExpectedDevice>({ kind: 'ExpectedDevice', sort: '-created', limit: 500 })
  const pending = useFound<Device>({ kind: 'Device', state: 'unapproved', sort: '-created', limit: 200 })
  const tokens = useThings('jointokens', 'JoinToken')
  const approve = useMutation({ mutationFn: (d: { tenant: string; name: string }) => call('POST', query(`/api/v1/devices/${d.name}/approve`, { tenant: d.tenant })), onSuccess: (_, d) => { setSaid(t('act.done', { name: d.name })); void client.invalidateQueries() } })
  return (
    <>
      <Head title={t('nav.onboarding')} aside={<Button onClick={() => setAdding(true)}>{t('zt.add')}</Button>} />
      <PageSection>
        <div aria-live="polite">{said && <Alert component="p" isInline variant="success" title={said} />}<Refusal error={approve.error} /></div>
        <Grid hasGutter>
          <GridItem span={12}><Card><CardTitle component="h2">{t('zt.pending')}</CardTitle><CardBody><Shown of={pending}>{(p) => p.items.length === 0 ? <p className="dim">{t('zt.pending.none')}</p> : (
            <Sheet label={t('zt.pending')} head={[t('col.name'), t('col.hardware'), t('col.serial'), t('box.id'), t('col.seen'), t('col.actions')]} rows={p.items.map(({ tenant, name, object: d }) => [`${tenant}/${name}`, [
              <Link key="n" to={`/devices/${tenant}/${name}`}>{name}</Link>, d?.status?.hardware?.product, d?.status?.hardware?.serial, <code key="i">{d?.status?.id}</code>, <Ago key="s" time={d?.status?.lastSeen} />,
              <Button key="a" size="sm" isLoading={approve.isPending && approve.variables.name === name} onClick={() => approve.mutate({ tenant, name })} aria-label={`${t('act.approve')} ${name}`}>{t('act.approve')}</Button>,
            ]])} />
          )}</Shown></CardBody></Card></GridItem>
          <GridItem span={12}><Card><CardTitle component="h2">{t('zt.expected')}</CardTitle><CardBody><Shown of={expected}>{(x) => x.items.length === 0 ? <Empty title={t('zt.none')} body={t('zt.none.body')}><Button variant="secondary" onClick={() => setAdding(true)}>{t('zt.add')}</Button></Empty> : (
            <Sheet label={t('zt.expected')} head={[t('col.serial'), t('zt.name'), t('col.tenant'), t('col.site'), t('col.labels'), t('col.progress'), t('col.actions')]} rows={x.items.map(({ tenant, name, object: o }) => [`${tenant}/${name}`, [
              <Link key="n" to={`/edit/ExpectedDevice/${tenant}/${name}`}>{o?.spec?.serial ?? name}</Link>, o?.spec?.name, tenant, o?.spec?.site, <Labels key="l" of={o?.spec?.labels} />,
              <span key="p">{o?.status?.device ? t('zt.came', { id: o.status.device.slice(0, 8) }) : o?.status?.progress ? `${o.status.progress} ${o.status.message ?? ''}` : t('zt.waits')}</span>,
              <Button key="b" size="sm" variant="link" onClick={() => printLabel(o?.spec?.serial ?? name, o?.spec?.name ?? '', o?.spec?.site ?? '')}>{t('act.print')}</Button>,
            ]])} />
          )}</Shown></CardBody></Card></GridItem>
          <GridItem span={12}><Card><CardTitle component="h2">{t('zt.tokens')}</CardTitle><CardBody><Shown of={tokens}>{(l) => l.items.length === 0 ? <p className="dim">{t('zt.tokens.none')}</p> : (
            <Sheet label={t('zt.tokens')} head={[t('col.name'), t('col.tenant'), t('col.labels'), t('col.uses'), t('col.expires')]} rows={l.items.map((o) => [`${o.metadata.tenant}/${o.metadata.name}`, [
              <Link key="n" to={`/edit/JoinToken/${o.metadata.tenant}/${o.metadata.name}`}>{o.metadata.name}</Link>, o.metadata.tenant, <Labels key="l" of={o.spec?.labels as Record<string, string>} />, String(o.status?.used ?? 0), o.spec?.expires ? new Date(String(o.spec.expires)).toLocaleString() : '',
            ]])} />
          )}</Shown></CardBody></Card></GridItem>
        </Grid>
      </PageSection>
      {adding && <Add close={() => setAdding(false)} added={(name) => { setAdding(false); setSaid(t('zt.approved', { name })); void client.invalidateQueries() }} />}
    </>
  )
}

function Add({ close, added }: { close: () => void; added: (name: string) => void }) {
  const [v, set] = useState({ code: '', serial: '', voucher: '', name: '', site: '', tenant: '', labels: '' })
  const field = (k: keyof typeof v) => ({ id: `x-${k}`, value: v[k], onChange: (_: unknown, to: string) => set({ ...v, [k]: to }) })
  const tidy = (o: Record<string, unknown>) => Object.fromEntries(Object.entries(o).filter(([, x]) => x !== ''))
  const add = useMutation({ mutationFn: () => {
    const name = (v.name || v.serial || `box-${v.code.replace(/[^0-9A-Za-z]/g, '').slice(0, 6)}`).toLowerCase().replace(/[^a-z0-9-]+/g, '-')
    return call<ExpectedDevice>('POST', query('/api/v1/expecteddevices', { tenant: v.tenant }), { apiVersion: 'tributary/v1', kind: 'ExpectedDevice', metadata: { name, ...tidy({ tenant: v.tenant }) }, spec: { ...tidy({ code: v.code.trim(), serial: v.serial.trim(), voucher: v.voucher.replace(/\s/g, ''), name: v.name, site: v.site }), ...(v.labels ? { labels: pairs(v.labels) } : {}) } })
  }, onSuccess: (o) => added(o.metadata.name) })
  return (
    <Modal isOpen variant="medium" onClose={close} aria-label={t('zt.add')}>
      <ModalHeader title={t('zt.add')} description={t('over.first.body')} />
      <ModalBody>
        <Refusal error={add.error} />
        <Form id="expect" onSubmit={(e) => { e.preventDefault(); add.mutate() }}>
          <FormGroup label={t('zt.code')} fieldId="x-code"><TextInput {...field('code')} autoFocus className="mono" /><FormHelperText><HelperText><HelperTextItem>{t('zt.code.help')}</HelperTextItem></HelperText></FormHelperText></FormGroup>
          <FormGroup label={t('zt.serial')} fieldId="x-serial"><TextInput {...field('serial')} className="mono" /></FormGroup>
          <FormGroup label={t('zt.voucher')} fieldId="x-voucher"><TextArea {...field('voucher')} rows={2} className="code" /><FormHelperText><HelperText><HelperTextItem>{t('zt.voucher.help')}</HelperTextItem></HelperText></FormHelperText></FormGroup>
          <Grid hasGutter><GridItem span={4}><FormGroup label={t('zt.name')} fieldId="x-name"><TextInput {...field('name')} /></FormGroup></GridItem><GridItem span={4}><FormGroup label={t('zt.site')} fieldId="x-site"><TextInput {...field('site')} /></FormGroup></GridItem><GridItem span={4}><FormGroup label={t('zt.tenant')} fieldId="x-tenant"><TextInput {...field('tenant')} placeholder="default" /></FormGroup></GridItem></Grid>
          <FormGroup label={t('zt.labels')} fieldId="x-labels"><TextArea {...field('labels')} rows={2} className="code" /></FormGroup>
        </Form>
      </ModalBody>
      <ModalFooter><Button type="submit" form="expect" isLoading={add.isPending} isDisabled={v.code === '' && v.serial === ''}>{t('zt.save')}</Button><Button variant="link" onClick={close}>{t('act.cancel')}</Button></ModalFooter>
    </Modal>
  )
}

// printLabel prints one label and nothing else of the page.
function printLabel(serial: string, name: string, site: string) {
  const label = document.createElement('div')
  label.className = 'print-label'
  for (const [tag, text] of [['b', t('zt.label')], ['code', serial], ['span', name], ['span', site]] as const) {
    const e = document.createElement(tag)
    e.textContent = text
    label.append(e)
  }
  document.body.append(label)
  document.body.classList.add('printing')
  window.addEventListener('afterprint', () => { label.remove(); document.body.classList.remove('printing') }, { once: true })
  window.print()
}
