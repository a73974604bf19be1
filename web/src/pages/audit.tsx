import { Button, FormSelect, FormSelectOption, Label, LabelGroup, PageSection, SearchInput, TextInput, Toolbar, ToolbarContent, ToolbarGroup, ToolbarItem } from '@patternfly/react-core'
import { AngleLeftIcon, AngleRightIcon } from '@patternfly/react-icons'
import { useQuery } from '@tanstack/react-query'
import { useState } from 'react'
import { useSearchParams } from 'react-router'
import { get, type AuditEntry } from '../api/client'
import { t, type Key } from '../i18n'
import { Empty, Head, Shown } from '../ui/bits'
import { Sheet } from '../ui/sheet'

const filters: [string, Key][] = [['tenant', 'col.tenant'], ['actor', 'aud.actor'], ['action', 'aud.action'], ['kind', 'col.kind'], ['name', 'aud.object'], ['outcome', 'aud.outcome'], ['from', 'aud.from'], ['to', 'aud.to']]
const typed = ['actor', 'action', 'kind', 'name'] as const
const perPage = 100

// The log of who did what. Each filter is a chip; what a row says becomes one when it is chosen.
export default function Audit() {
  const [params, setParams] = useSearchParams()
  const [by, setBy] = useState<(typeof typed)[number]>('actor')
  const [text, setText] = useState('')
  const [cursors, setCursors] = useState<number[]>([])
  const value = (k: string) => params.get(k) ?? ''
  const set = (k: string, v: string) => { setCursors([]); setParams((p) => { const n = new URLSearchParams(p); if (v) n.set(k, v); else n.delete(k); return n }, { replace: true }) }
  const asked = { tenant: '*', ...Object.fromEntries(filters.flatMap(([k]) => value(k) ? [[k, k === 'from' || k === 'to' ? new Date(value(k)).toISOString() : value(k)]] : [])), limit: perPage, before: cursors[cursors.length - 1] }
  // A row is no object, of which the core would tell that it changed: the newest page is asked for again.
  const log = useQuery({ queryKey: ['audit', asked], queryFn: ({ signal }) => get<{ items: AuditEntry[] | null; next?: number }>('/api/v1/audit', asked, signal), refetchInterval: cursors.length === 0 ? 2000 : false, placeholderData: (old) => old })
  const chosen = filters.filter(([k]) => value(k))
  const pick = (k: string, v: string | undefined) => v ? <Button variant="link" isInline onClick={() => set(k, v)}>{v}</Button> : null
  const clear = () => { setCursors([]); setParams({}) }
  const kinds: [(typeof typed)[number], Key][] = [['actor', 'aud.actor'], ['action', 'aud.action'], ['kind', 'col.kind'], ['name', 'aud.object']]
  return (
    <>
      <Head title={t('nav.audit')}><p className="dim">{t('aud.about')}</p></Head>
      <PageSection>
        <Toolbar><ToolbarContent>
          <ToolbarItem><FormSelect aria-label={t('aud.by')} value={by} onChange={(_, v) => setBy(v as typeof by)}>{kinds.map(([k, name]) => <FormSelectOption key={k} value={k} label={t(name)} />)}</FormSelect></ToolbarItem>
          <ToolbarItem><SearchInput value={text} aria-label={t('aud.filter')} placeholder={t('aud.filter')} onChange={(_, v) => setText(v)} onClear={() => setText('')} onSearch={() => { if (text.trim()) { set(by, text.trim()); setText('') } }} /></ToolbarItem>
          <ToolbarItem><FormSelect aria-label={t('aud.outcome')} value={value('outcome')} onChange={(_, v) => set('outcome', v)}><FormSelectOption value="" label={t('aud.outcome')} />{(['done', 'refused', 'failed'] as const).map((o) => <FormSelectOption key={o} value={o} label={t(`aud.${o}`)} />)}</FormSelect></ToolbarItem>
          <ToolbarItem className="mid"><label className="pair">{t('aud.from')}<TextInput type="datetime-local" aria-label={t('aud.from')} value={value('from')} onChange={(_, v) => set('from', v)} /></label></ToolbarItem>
          <ToolbarItem className="mid"><label className="pair">{t('aud.to')}<TextInput type="datetime-local" aria-label={t('aud.to')} value={value('to')} onChange={(_, v) => set('to', v)} /></label></ToolbarItem>
          <ToolbarGroup align={{ default: 'alignEnd' }}>
            <ToolbarItem><Button variant="plain" aria-label={t('dev.prev')} icon={<AngleLeftIcon />} isDisabled={cursors.length === 0} onClick={() => setCursors(cursors.slice(0, -1))} /></ToolbarItem>
            <ToolbarItem className="mid">{t('dev.page', { n: cursors.length + 1 })}</ToolbarItem>
            <ToolbarItem><Button variant="plain" aria-label={t('dev.next')} icon={<AngleRightIcon />} isDisabled={!log.data?.next} onClick={() => { if (log.data?.next) setCursors([...cursors, log.data.next]) }} /></ToolbarItem>
          </ToolbarGroup>
        </ToolbarContent></Toolbar>
        {chosen.length > 0 && <div className="chips">{chosen.map(([k, name]) => <LabelGroup key={k} categoryName={t(name)}><Label onClose={() => set(k, '')} closeBtnAriaLabel={t('view.remove', { name: value(k) })}>{k === 'from' || k === 'to' ? new Date(value(k)).toLocaleString() : value(k)}</Label></LabelGroup>)}<Button variant="link" isInline onClick={clear}>{t('dev.clear')}</Button></div>}
        <Shown of={log}>{(l) => !l.items?.length ? <Empty filtered={chosen.length > 0} title={chosen.length > 0 ? t('empty.filter') : t('aud.none')}>{chosen.length > 0 && <Button variant="link" onClick={clear}>{t('empty.clear')}</Button>}</Empty> : (
          <div className={log.isPlaceholderData ? 'stale' : ''}><Sheet label={t('nav.audit')} head={['#', t('col.time'), t('aud.actor'), t('aud.action'), t('aud.object'), t('col.tenant'), t('aud.outcome'), t('aud.where')]} rows={l.items.map((r) => [`${r.epoch}/${r.seq}`, [
            <span key="q" className="dim mono">{r.seq}</span>, <time key="t" className="nowrap" dateTime={r.time}>{new Date(r.time).toLocaleString()}</time>,
            <span key="a">{pick('actor', r.actorName || r.actor)} <span className="dim">{r.how}</span></span>, <span key="x">{pick('action', r.action)}{r.count && r.count > 1 ? ` ×${r.count}` : ''}</span>,
            <span key="o">{pick('kind', r.kind)} {pick('name', r.name)}{r.message && <div className="dim">{r.message}</div>}</span>, pick('tenant', r.tenantName),
            <Label key="u" isCompact color={r.outcome === 'done' ? 'green' : r.outcome === 'refused' ? 'orange' : 'red'}>{t(`aud.${r.outcome}`)}</Label>, <span key="w" className="dim mono">{r.source}</span>,
          ]])} /></div>
        )}</Shown>
      </PageSection>
    </>
  )
}
