import { useQuery } from '@tanstack/react-query'
import { geoEqualEarth, geoPath } from 'd3-geo'
import { Link } from 'react-router'
import { feature } from 'topojson-client'
import type { GeometryCollection, Topology } from 'topojson-specification'
import outline from 'world-atlas/land-110m.json?url'
import type { Device, Site } from '../api/client'
import { t } from '../i18n'
import { Empty, states } from './bits'

const size = { width: 720, height: 350 }
const projection = geoEqualEarth().fitExtent([[4, 4], [size.width - 4, size.height - 4]], { type: 'Sphere' })
const path = geoPath(projection)

// WorldMap shows sites where they are, each in the colour of its worst box.
export function WorldMap({ sites, devices }: { sites: Site[]; devices: { device: Device; state?: string }[] }) {
  const land = useQuery({ queryKey: ['land'], staleTime: Infinity, queryFn: async () => {
    const world = await (await fetch(outline)).json() as Topology<{ land: GeometryCollection }>
    return path(feature(world, world.objects.land)) ?? ''
  } })
  const placed = sites.filter((s) => s.spec?.latitude !== undefined && s.spec.longitude !== undefined)
  if (placed.length === 0) return <Empty title={t('over.sites')} body={t('over.map.none')} />
  return (
    <svg className="map" viewBox={`0 0 ${size.width} ${size.height}`} role="group" aria-label={t('over.map.alt', { n: placed.length })}>
      <path className="sea" d={path({ type: 'Sphere' }) ?? ''} />
      <path className="land" d={land.data ?? ''} />
      {placed.map((s) => {
        const at = projection([s.spec!.longitude!, s.spec!.latitude!])
        if (!at) return null
        const here = devices.filter((d) => d.device.spec?.site === s.metadata.name && (d.device.metadata.tenant ?? '') === (s.metadata.tenant ?? ''))
        const worst = states.find((w) => here.some((d) => d.state === w)) ?? 'retired'
        const name = s.spec?.displayName ?? s.metadata.name
        return (
          <Link key={`${s.metadata.tenant}/${s.metadata.name}`} to={`/devices?site=${s.metadata.name}`} aria-label={`${name}: ${here.length}`}>
            <g className={`pin pin-${worst}`}><circle cx={at[0]} cy={at[1]} r={6 + Math.min(8, Math.sqrt(here.length))} /><text x={at[0]} y={at[1] - 12}>{name}</text></g>
          </Link>
        )
      })}
    </svg>
  )
}
