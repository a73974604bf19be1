import { Label } from '@patternfly/react-core'
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table'
import { Link } from 'react-router'
import type { EventEntry } from '../api/client'
import { t } from '../i18n'
import { Ago, Empty } from './bits'

const bad = /fail|refus|lost|crash|unhealthy|alarm|offline|reject|anomaly/

export function EventList({ events, device = true }: { events: EventEntry[]; device?: boolean }) {
  if (events.length === 0) return <Empty title={t('ev.none')} />
  return (
    <Table variant="compact" aria-label={t('over.recent')} borders={false}>
      <Thead><Tr><Th>{t('col.time')}</Th>{device && <Th>{t('col.device')}</Th>}<Th>{t('col.event')}</Th><Th>{t('col.subject')}</Th><Th>{t('col.message')}</Th></Tr></Thead>
      <Tbody>
        {events.map((e) => (
          <Tr key={`${e.device}/${e.core ? 'c' : 'd'}/${e.seq}/${e.event.time}`}>
            <Td dataLabel={t('col.time')}><Ago time={e.event.time} /></Td>
            {device && <Td dataLabel={t('col.device')}>{e.name && e.tenant ? <Link to={`/devices/${e.tenant}/${e.name}`}>{e.name}</Link> : <span className="dim mono">{e.name ?? e.device.slice(0, 12)}</span>}</Td>}
            <Td dataLabel={t('col.event')}><Label isCompact color={bad.test(e.event.name) ? 'orange' : 'grey'}>{e.event.name}</Label>{e.audit && <> <Label isCompact variant="outline">{t('ev.audit')}</Label></>}</Td>
            <Td dataLabel={t('col.subject')} modifier="breakWord">{e.event.subject}</Td>
            <Td dataLabel={t('col.message')} modifier="breakWord">{e.event.message}</Td>
          </Tr>
        ))}
      </Tbody>
    </Table>
  )
}
