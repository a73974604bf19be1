import { Button, Dropdown, DropdownItem, DropdownList, Form, FormGroup, HelperText, HelperTextItem, Label, LabelGroup, MenuToggle, Modal, ModalBody, ModalFooter, ModalHeader, PageSection, SearchInput, Select, SelectList, SelectOption, TextInput, Toolbar, ToolbarContent, ToolbarGroup, ToolbarItem } from '@patternfly/react-core'
import { AngleLeftIcon, AngleRightIcon, FilterIcon, TimesIcon } from '@patternfly/react-icons'
import { Table, Tbody, Td, Th, Thead, Tr, type ThProps } from '@patternfly/react-table'
import { useEffect, useState } from 'react'
import { Link, useSearchParams } from 'react-router'
import type { Device, Site } from '../api/client'
import { t, type Key } from '../i18n'
import { Ago, Empty, Head, isState, Labels, Shown, StateLabel, stateName, states, useFound } from '../ui/bits'

const columns: { key: Key; sort?: string }[] = [{ key: 'col.name', sort: 'name' }, { key: 'col.state', sort: 'state' }, { key: 'col.site', sort: 'site' }, { key: 'col.parent', sort: 'parent' }, { key: 'col.hardware' }, { key: 'col.apps' }, { key: 'col.version', sort: 'version' }, { key: 'col.labels' }, { key: 'col.seen', sort: 'seen' }]
const filters = ['q', 'state', 'site', 'app', 'version', 'selector'] as const
const perPage = 50

function Picker({ title, options, chosen, change }: { title: string; options: [string, string][]; chosen: string[]; change: (to: string[]) => void }) {
  const [open, setOpen] = useState(false)
  return (
    <Select role="menu" isOpen={open} onOpenChange={setOpen} selected={chosen} onSelect={(_, v) => change(chosen.includes(String(v)) ? chosen.filter((c) => c !== v) : [...chosen, String(v)])} isScrollable
      toggle={(ref) => <MenuToggle ref={ref} isExpanded={open} onClick={() => setOpen(!open)} icon={<FilterIcon />}>{title}</MenuToggle>}>
      <SelectList>{options.map(([v, name]) => <SelectOption key={v} value={v} hasCheckbox isSelected={chosen.includes(v)}>{name}</SelectOption>)}</SelectList>
    </Select>
  )
}

interface View { name: string; query: string }
const viewsKey = 'tributary.views'
function Views({ now, show }: { now: string; show: (query: string) => void }) {
  const [views, set] = useState<View[]>(() => { try { return JSON.parse(localStorage.getItem(viewsKey) ?? '[]') as View[] } catch { return [] } })
  const [open, setOpen] = useState(false)
  const [naming, setNaming] = useState<string | null>(null)
  const keep = (v: View[]) => { set(v); localStorage.setItem(viewsKey, JSON.stringify(v)) }
  return (
    <>
      <Dropdown isOpen={open} onOpenChange={setOpen} toggle={(ref) => <MenuToggle ref={ref} isExpanded={open} onClick={() => setOpen(!open)}>{t('view.saved')}</MenuToggle>}>
        <DropdownList>
          <DropdownItem key="all" onClick={() => { show(''); setOpen(false) }}>{t('view.all')}</DropdownItem>
          {views.map((v) => <DropdownItem key={`v${v.name}`} onClick={() => { show(v.query); setOpen(false) }}>{v.name}</DropdownItem>)}
          {views.map((v) => <DropdownItem key={`r${v.name}`} icon={<TimesIcon />} onClick={() => keep(views.filter((o) => o !== v))}>{t('view.remove', { name: v.name })}</DropdownItem>)}
          <DropdownItem key="save" isDisabled={now === ''} description={now === '' ? t('view.none') : undefined} onClick={() => { setOpen(false); setNaming('') }}>{t('view.save')}</DropdownItem>
        </DropdownList>
      </Dropdown>
      {naming !== null && (
        <Modal isOpen variant="small" onClose={() => setNaming(null)} aria-label={t('view.save')}>
          <ModalHeader title={t('view.save')} />
          <ModalBody><Form onSubmit={(e) => e.preventDefault()}><FormGroup label={t('view.name')} fieldId="view-name"><TextInput id="view-name" value={naming} onChange={(_, v) => setNaming(v)} autoFocus /><HelperText><HelperTextItem>{t('view.kept')}</HelperTextItem></HelperText></FormGroup></Form></ModalBody>
          <ModalFooter><Button isDisabled={naming.trim() === ''} onClick={() => { keep([...views.filter((v) => v.name !== naming.trim()), { name: naming.trim(), query: now }]); setNaming(null) }}>{t('view.save')}</Button><Button variant="link" onClick={() => setNaming(null)}>{t('act.cancel')}</Button></ModalFooter>
        </Modal>
      )}
    </>
  )
}

export default function Devices() {
  const [params, setParams] = useSearchParams()
  const [text, setText] = useState(params.get('q') ?? '')
  const [cursors, setCursors] = useState<string[]>([])
  const sort = params.get('sort') ?? 'name'
  const value = (k: string) => params.get(k) ?? ''
  const values = (k: string) => value(k).split(',').filter(Boolean)
  const set = (k: string, v: string) => { setCursors([]); setParams((p) => { const n = new URLSearchParams(p); if (v) n.set(k, v); else n.delete(k); return n }, { replace: true }) }
  const clear = () => { setText(''); setCursors([]); setParams({}) }
  useEffect(() => { const i = setTimeout(() => { if (text !== value('q')) set('q', text) }, 250); return () => clearTimeout(i) })
  const found = useFound<Device>({ kind: 'Device', ...Object.fromEntries(filters.map((f) => [f, value(f) || undefined])), sort, limit: perPage, after: cursors[cursors.length - 1] })
  const sites = useFound<Site>({ kind: 'Site', limit: 200 })
  const filtered = filters.some((f) => value(f))
  const sorted = (i: number): ThProps['sort'] => {
    const by = columns[i]!.sort
    if (!by) return undefined
    const at = columns.findIndex((c) => c.sort === sort.replace('-', ''))
    return { columnIndex: i, sortBy: { index: at, direction: sort.startsWith('-') ? 'desc' : 'asc' }, onSort: (_, __, direction) => set('sort', direction === 'desc' ? `-${by}` : by) }
  }
  const names = new Map((found.data?.items ?? []).map((i) => [i.object?.status?.id, i.name]))
  return (
    <>
      <Head title={t('nav.devices')} aside={<Views now={params.toString()} show={(q) => { const p = new URLSearchParams(q); setText(p.get('q') ?? ''); setCursors([]); setParams(p) }} />} />
      <PageSection>
        <Toolbar>
          <ToolbarContent>
            <ToolbarItem><SearchInput value={text} placeholder={t('dev.search')} aria-label={t('dev.search')} onChange={(_, v) => setText(v)} onClear={() => setText('')} /></ToolbarItem>
            <ToolbarItem><Picker title={t('dev.state')} options={states.map((s) => [s, `${stateName(s)} (${found.data?.states[s] ?? 0})`])} chosen={values('state')} change={(v) => set('state', v.join(','))} /></ToolbarItem>
            <ToolbarItem><Picker title={t('dev.site')} options={(sites.data?.items ?? []).map((s) => [s.name, s.object?.spec?.displayName ?? s.name])} chosen={values('site')} change={(v) => set('site', v.join(','))} /></ToolbarItem>
            <ToolbarGroup align={{ default: 'alignEnd' }}>
              <ToolbarItem className="mid" ><span aria-live="polite">{found.data ? t('dev.count', { n: found.data.total }) : ''}</span></ToolbarItem>
              <ToolbarItem><Button variant="plain" aria-label={t('dev.prev')} icon={<AngleLeftIcon />} isDisabled={cursors.length === 0} onClick={() => setCursors(cursors.slice(0, -1))} /></ToolbarItem>
              <ToolbarItem className="mid">{t('dev.page', { n: cursors.length + 1 })}</ToolbarItem>
              <ToolbarItem><Button variant="plain" aria-label={t('dev.next')} icon={<AngleRightIcon />} isDisabled={!found.data?.next} onClick={() => { if (found.data?.next) setCursors([...cursors, found.data.next]) }} /></ToolbarItem>
            </ToolbarGroup>
          </ToolbarContent>
        </Toolbar>
        {filtered && (
          <div className="chips">
            {filters.filter((f) => f !== 'q').flatMap((f) => value(f) ? [<LabelGroup key={f} categoryName={f === 'state' ? t('col.state') : f === 'site' ? t('col.site') : f === 'app' ? t('col.apps') : f === 'version' ? t('col.version') : t('col.labels')}>
              {values(f).map((v) => <Label key={v} onClose={() => set(f, values(f).filter((o) => o !== v).join(','))} closeBtnAriaLabel={t('view.remove', { name: v })}>{isState(v) ? stateName(v) : v}</Label>)}
            </LabelGroup>] : [])}
            <Button variant="link" isInline onClick={clear}>{t('dev.clear')}</Button>
          </div>
        )}
        <Shown of={found}>{(f) => f.items.length === 0 ? (filtered ? <Empty filtered title={t('empty.filter')}><Button variant="link" onClick={clear}>{t('empty.clear')}</Button></Empty> : <Empty title={t('dev.none')} body={t('over.first.body')}><Button component={(p) => <Link {...p} to="/onboarding" />}>{t('over.first.do')}</Button></Empty>) : (
          <Table variant="compact" aria-label={t('nav.devices')} className={found.isPlaceholderData ? 'stale' : ''}>
            <Thead><Tr>{columns.map((c, i) => <Th key={c.key} modifier="nowrap" sort={sorted(i)}>{t(c.key)}</Th>)}</Tr></Thead>
            <Tbody>{f.items.map(({ tenant, name, state, object: d }) => (
              <Tr key={`${tenant}/${name}`}>
                <Td dataLabel={t('col.name')} modifier="nowrap"><Link to={`/devices/${tenant}/${name}`}>{name}</Link>{tenant !== 'default' && <span className="dim"> {tenant}</span>}</Td>
                <Td dataLabel={t('col.state')} modifier="nowrap"><StateLabel state={state} /></Td>
                <Td dataLabel={t('col.site')}>{d?.spec?.site}</Td>
                <Td dataLabel={t('col.parent')}>{d?.status?.parent === 'core' ? t('over.core') : names.get(d?.status?.parent) ?? <span className="dim mono">{d?.status?.parent?.slice(0, 8)}</span>}</Td>
                <Td dataLabel={t('col.hardware')}>{[d?.status?.hardware?.product, d?.status?.hardware?.arch].filter(Boolean).join(' · ')}</Td>
                <Td dataLabel={t('col.apps')} modifier="nowrap">{t('fleet.of', { n: (d?.status?.apps ?? []).filter((a) => a.state === 'Running').length, total: d?.status?.apps?.length ?? 0 })}</Td>
                <Td dataLabel={t('col.version')}>{d?.status?.version}</Td>
                <Td dataLabel={t('col.labels')}><Labels of={Object.fromEntries(Object.entries(d?.metadata.labels ?? {}).filter(([k]) => !k.startsWith('hw.tributary/')))} /></Td>
                <Td dataLabel={t('col.seen')}><Ago time={d?.status?.lastSeen} /></Td>
              </Tr>
            ))}</Tbody>
          </Table>
        )}</Shown>
      </PageSection>
    </>
  )
}
