import { PageSection, Progress, ProgressMeasureLocation, ProgressSize } from '@patternfly/react-core'
import { Link } from 'react-router'
import type { Device } from '../api/client'
import { t } from '../i18n'
import { Empty, Head, Shown, StateLabel, useFound } from '../ui/bits'
import { Sheet } from '../ui/sheet'

export default function Accelerators() {
  const devices = useFound<Device>({ kind: 'Device', sort: 'name', limit: 1000 })
  return (
    <>
      <Head title={t('nav.accelerators')}><p className="dim">{t('acc.all')}</p></Head>
      <PageSection><Shown of={devices}>{(d) => {
        const rows = d.items.flatMap((i) => (i.object?.status?.capacity ?? []).map((c) => ({ ...i, c })))
        if (rows.length === 0) return <Empty title={t('acc.none')} body={t('acc.none.body')} />
        return <Sheet label={t('acc.all')} head={[t('col.device'), t('col.state'), t('hw.class'), t('col.used'), t('col.free'), t('col.total')]} rows={rows.map(({ tenant, name, state, c }) => [`${tenant}/${name}/${c.name}`, [
          <Link key="n" to={`/devices/${tenant}/${name}/hardware`}>{name}</Link>, <StateLabel key="s" state={state} />, c.name, <Progress key="p" className="share" size={ProgressSize.sm} value={c.total ? (100 * c.held) / c.total : 0} label={String(c.held)} measureLocation={ProgressMeasureLocation.outside} aria-label={`${c.name} ${t('col.used')}`} />, c.free, c.total,
        ]])} />
      }}</Shown></PageSection>
    </>
  )
}
