import { Alert, Button, Card, CardBody, CardTitle, Grid, GridItem, Label, PageSection } from '@patternfly/react-core'
import { DownloadIcon } from '@patternfly/react-icons'
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table'
import { useMutation, useQuery } from '@tanstack/react-query'
import { Link, useParams } from 'react-router'
import { get, send, type Invoice } from '../api/client'
import { t } from '../i18n'
import { Head, Refusal, Shown } from '../ui/bits'
import { money } from '../ui/money'
import { Sheet } from '../ui/sheet'

const forms = [['pdf', 'PDF'], ['csv', 'CSV'], ['focus', 'FOCUS'], ['json', 'JSON']] as const

// save has the browser keep what the core answers under the name that it gives.
async function save(number: string, form: string) {
  const r = await send('GET', `/api/v1/invoices/${number}/${form}`)
  const name = /filename="([^"]+)"/.exec(r.headers.get('Content-Disposition') ?? '')?.[1] ?? `${number}.${form}`
  const at = URL.createObjectURL(await r.blob())
  const a = document.createElement('a')
  a.href = at
  a.download = name
  a.click()
  setTimeout(() => URL.revokeObjectURL(at), 60_000)
}

export default function InvoicePage() {
  const { number = '' } = useParams()
  const invoice = useQuery({ queryKey: ['invoice', number], queryFn: ({ signal }) => get<Invoice>(`/api/v1/invoices/${number}`, {}, signal) })
  const load = useMutation({ mutationFn: (form: string) => save(number, form) })
  return (
    <>
      <Head title={number} aside={invoice.data && <div className="acts">{forms.map(([form, name]) => <Button key={form} variant="secondary" icon={<DownloadIcon />} isLoading={load.isPending && load.variables === form} onClick={() => load.mutate(form)}>{name}</Button>)}</div>}>
        {invoice.data && <p className="sub"><Link to="/costs">{t('nav.costs')}</Link><Label isCompact color={invoice.data.kind === 'credit-note' ? 'orange' : 'blue'}>{invoice.data.kind === 'credit-note' ? t('inv.credit') : t('inv.invoice')}</Label><span className="dim">{invoice.data.period} · {invoice.data.zone}</span><span className="dim">{t('inv.issued')} {invoice.data.issued}</span></p>}
      </Head>
      <PageSection><div aria-live="polite"><Refusal error={load.error} /></div><Shown of={invoice}>{(d) => <Paper of={d} />}</Shown></PageSection>
    </>
  )
}

function Paper({ of }: { of: Invoice }) {
  const party = (title: string, p: Invoice['buyer']) => <Card isFullHeight><CardTitle component="h2">{title}</CardTitle><CardBody><b>{p.legalName}</b>{(p.address ?? []).map((l) => <div key={l}>{l}</div>)}<div>{p.country}</div>{p.taxID && <div className="mono">{p.taxID}</div>}<div className="dim">{p.tenant}</div></CardBody></Card>
  const sum = (m: string) => <span className="amount">{money(m)}</span>
  const energy = (mj?: number) => mj ? `${(mj / 3_600_000_000).toFixed(3)} kWh` : ''
  return (
    <Grid hasGutter>
      <GridItem span={12} md={6}>{party(t('inv.seller'), of.seller)}</GridItem>
      <GridItem span={12} md={6}>{party(t('inv.buyer'), of.buyer)}</GridItem>
      {(of.credits || of.reason) && <GridItem span={12}><Alert component="p" isInline variant="info" title={[of.credits && t('inv.credits', { number: of.credits }), of.reason].filter(Boolean).join(': ')} /></GridItem>}
      <GridItem span={12}><Card><CardTitle component="h2">{t('inv.lines')}</CardTitle><CardBody>
        <Table variant="compact" aria-label={t('inv.lines')} className="invoice">
          <Thead><Tr><Th>{t('cost.line')}</Th><Th>{t('inv.quantity')}</Th><Th className="right">{t('inv.net')}</Th><Th className="right">{t('inv.percent')}</Th><Th className="right">{t('inv.tax')}</Th><Th className="right">{t('inv.gross')}</Th><Th className="right">{t('inv.energy')}</Th></Tr></Thead>
          <Tbody>
            {(of.lines ?? []).map((l) => (
              <Tr key={l.id}>
                <Td dataLabel={t('cost.line')}>{l.text} <span className="dim mono">{l.id}</span>{l.reason && <div className="dim">{l.reason}</div>}</Td><Td dataLabel={t('inv.quantity')}>{[l.quantity, l.unit].filter(Boolean).join(' ')}</Td>
                <Td dataLabel={t('inv.net')} className="right">{sum(l.net)}</Td><Td dataLabel={t('inv.percent')} className="right">{l.taxPercent}</Td><Td dataLabel={t('inv.tax')} className="right">{sum(l.tax)}</Td><Td dataLabel={t('inv.gross')} className="right">{sum(l.gross)}</Td><Td dataLabel={t('inv.energy')} className="right">{energy(l.energyMillijoules)}</Td>
              </Tr>
            ))}
            <Tr className="total"><Td dataLabel={t('cost.line')}><b>{t('inv.total')}</b></Td><Td dataLabel={t('inv.quantity')}>{of.currency}</Td><Td dataLabel={t('inv.net')} className="right"><b>{sum(of.net)}</b></Td><Td /><Td dataLabel={t('inv.tax')} className="right"><b>{sum(of.tax)}</b></Td><Td dataLabel={t('inv.gross')} className="right"><b>{sum(of.gross)}</b></Td><Td dataLabel={t('inv.energy')} className="right">{energy(of.energyMillijoules)}</Td></Tr>
          </Tbody>
        </Table>
      </CardBody></Card></GridItem>
      {(of.taxes ?? []).length > 0 && <GridItem span={12} md={6}><Card><CardTitle component="h2">{t('inv.taxes')}</CardTitle><CardBody><Sheet label={t('inv.taxes')} head={[t('col.name'), t('inv.percent'), t('inv.net'), t('inv.tax')]} rows={of.taxes!.map((x) => [`${x.name}/${x.percent}`, [x.name, x.percent, money(x.net), money(x.tax)]])} /></CardBody></Card></GridItem>}
      {(of.decisions ?? []).length > 0 && <GridItem span={12} md={6}><Card><CardTitle component="h2">{t('inv.decisions')}</CardTitle><CardBody><Sheet label={t('inv.decisions')} head={[t('col.subject'), t('inv.decided'), t('aud.actor'), t('roll.why')]} rows={of.decisions!.map((x, i) => [String(i), [<code key="s">{x.subject}</code>, x.action, x.by, x.reason]])} /></CardBody></Card></GridItem>}
      <GridItem span={12}><p className="dim">{t('inv.made', { n: of.usage.entries })} <span className="mono">{of.usage.digest}</span></p></GridItem>
    </Grid>
  )
}
