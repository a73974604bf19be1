// withNonce runs what adds style sheets of its own to the page: each carries the nonce that the page's policy lets through.
export function withNonce<T>(make: () => T): T {
  const nonce = document.querySelector<HTMLMetaElement>('meta[name="csp-nonce"]')?.nonce ?? ''
  const create = document.createElement.bind(document)
  document.createElement = ((name: string, options?: ElementCreationOptions) => {
    const e = create(name, options)
    if (name === 'style') e.nonce = nonce
    return e
  }) as typeof document.createElement
  try { return make() } finally { document.createElement = create }
}
