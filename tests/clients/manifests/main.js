// Says what is wrong with Kubernetes manifests, by what the projects publish of their kinds:
//
//   client FILE
//
// FILE holds a JSON array of manifests. The answer is a JSON array with the mistakes of each. Types tell unknown fields
// and words, schemas tell what is missing and patterns.
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

const here = path.dirname(fileURLToPath(import.meta.url))
const manifests = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'))

function moduleOf({ apiVersion, kind }) {
  const group = apiVersion.includes('/') ? apiVersion.split('/')[0] : ''
  if (group === 'argoproj.io') return `@kubernetes-models/argo-cd/${apiVersion}/${kind}`
  if (group === 'external-secrets.io') return `@kubernetes-models/external-secrets/${apiVersion}/${kind}`
  if (group === 'monitoring.coreos.com') return `@kubernetes-models/prometheus-operator/${apiVersion}/${kind}`
  if (group.endsWith('.toolkit.fluxcd.io')) return `@kubernetes-models/flux-cd/${apiVersion}/${kind}`
  return `kubernetes-models/${apiVersion}/${kind}`
}

async function bySchema(manifest) {
  try {
    const model = (await import(moduleOf(manifest)))[manifest.kind]
    new model(manifest).validate()
    return []
  } catch (error) {
    return [error.message]
  }
}

function byType(manifests) {
  const sources = new Map(
    manifests.map((manifest, number) => [
      path.join(here, `manifest-${number}.ts`),
      `import type { I${manifest.kind} } from ${JSON.stringify(moduleOf(manifest))}\n` +
        `export const manifest: I${manifest.kind} = ${JSON.stringify(manifest)}\n`,
    ]),
  )
  const options = {
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    noEmit: true,
    skipLibCheck: true,
    strict: true,
    types: [],
  }
  const host = ts.createCompilerHost(options)
  const { fileExists, readFile } = host
  host.fileExists = (name) => sources.has(name) || fileExists(name)
  host.readFile = (name) => sources.get(name) ?? readFile(name)
  const program = ts.createProgram([...sources.keys()], options, host)
  return [...sources.keys()].map((name) =>
    ts
      .getPreEmitDiagnostics(program, program.getSourceFile(name))
      .map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, ' ')),
  )
}

const typed = byType(manifests)
const mistakes = await Promise.all(
  manifests.map(async (manifest, number) => [...typed[number], ...(await bySchema(manifest))]),
)
console.log(JSON.stringify(mistakes))
