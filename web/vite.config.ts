import react from '@vitejs/plugin-react'
import { defineConfig } from 'vite'

// Nothing is put into the page as data: its policy allows what the core serves, and no more.
export default defineConfig({
  plugins: [react()],
  base: '/',
  build: { outDir: 'dist', assetsDir: 'assets', assetsInlineLimit: 0, chunkSizeWarningLimit: 2000, reportCompressedSize: false, modulePreload: { polyfill: false } },
})
