import { Alert, Card, CardBody, CardTitle, Grid, GridItem, Label, PageSection } from '@patternfly/react-core'
import { useQuery } from '@tanstack/react-query'
import { Link, useParams } from 'react-router'
import { get, query, type RevisionHistory } from '../api/client'
import { t } from '../i18n'
import { Sure, useOrder } from '../ui/acts'
import { Ago, Head, pathOf, Refusal, Shown } from '../ui/bits'
import { Sheet } from '../ui/sheet'

// History is what became of one object: its revisions, and when all devices were given which.
export default function History() {
  const { kind = '', tenant = 'default', name = '' } = useParams()
  const path = `/api/v1/revisions/${kind.toLowerCase()}/${name}`
  const history = useQuery({ queryKey: ['history', kind, tenant, name], queryFn: ({ signal }) => get<RevisionHistory>(path, { tenant }, signal), meta: { kinds: [kind, 'Rollout'] } })
  const undo = useOrder()
  return (
    <>
      <Head title={t('hist.of', { name })}><p className="sub"><Link to={pathOf(kind, tenant, name)}>{kind} {name}</Link><span className="dim">{tenant}</span></p></Head>
      <PageSection><Shown of={history}>{(h) => (
        <Grid hasGutter>
          <GridItem span={12}><div aria-live="polite"><Refusal error={undo.error} />{undo.isSuccess && <Alert component="p" isInline variant="success" title={t('hist.undone')} />}</div></GridItem>
          <GridItem span={12}><Card><CardTitle component="h2">{t('hist.revisions')}</CardTitle><CardBody>
            <Sheet label={t('hist.revisions')} head={[t('hist.revision'), t('col.time'), t('col.devices'), t('hist.pins'), t('col.state'), t('col.actions')]} rows={(h.revisions ?? []).map((r) => [String(r.revision), [
              r.revision, <Ago key="c" time={r.created} />, r.devices ?? 0, (r.pins ?? []).map((p) => `${p.kind} ${p.name} ${p.revision}`).join(', '),
              <span key="s" className="labels">{r.revision === h.given && <Label isCompact color="green">{t('hist.given')}</Label>}{r.revision === h.newest && <Label isCompact color="blue">{t('hist.newest')}</Label>}{r.revoked && <Label isCompact color="red">{t('hist.revoked')}</Label>}</span>,
              r.revision !== h.given && r.revision !== h.newest && !r.revoked && <Sure key="u" label={t('hist.undo')} title={t('hist.undo')} acts={[{ label: t('hist.undo'), act: () => undo.mutate({ path: query(`${path}/undo`, { tenant, to: r.revision }) }) }]}>{t('hist.undo.sure', { name, n: r.revision })}</Sure>,
            ]])} />
          </CardBody></Card></GridItem>
          <GridItem span={12}><Card><CardTitle component="h2">{t('hist.turns')}</CardTitle><CardBody>{!h.turns?.length ? <p className="dim">{t('hist.turns.none')}</p> : (
            <Sheet label={t('hist.turns')} head={[t('col.time'), t('edit.before'), t('edit.after'), t('hist.by')]} rows={[...h.turns].sort((a, b) => b.time.localeCompare(a.time)).map((n, i) => [`${i}`, [<Ago key="t" time={n.time} />, n.before || t('dash'), n.revision, n.rollout ? <Link key="r" to={`/rollouts/${tenant}/${n.rollout}`}>{n.rollout}</Link> : t('hist.apply')]])} />
          )}</CardBody></Card></GridItem>
        </Grid>
      )}</Shown></PageSection>
    </>
  )
}
