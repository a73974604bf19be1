import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table'
import type { ReactNode } from 'react'

// Sheet is a table of rows with a key each.
export function Sheet({ label, head, rows }: { label: string; head: string[]; rows: [string, ReactNode[]][] }) {
  return (
    <Table variant="compact" aria-label={label}>
      <Thead><Tr>{head.map((h) => <Th key={h} modifier="wrap">{h}</Th>)}</Tr></Thead>
      <Tbody>{rows.map(([key, cells]) => <Tr key={key}>{cells.map((c, i) => <Td key={i} dataLabel={head[i]}>{c}</Td>)}</Tr>)}</Tbody>
    </Table>
  )
}
