// Does with isomorphic-git what the matrix of clients asks for, one operation a run:
//
//   list URL | clone URL DIR | shallow URL DIR | fetch URL DIR | tags URL DIR | commit URL DIR ID
//
// It lists with protocol v2 and fetches with v0, as isomorphic-git does by itself.
import fs from 'node:fs'
import git from 'isomorphic-git'
import http from 'isomorphic-git/http/node'

const [operation, url, dir, id] = process.argv.slice(2)
const remote = { fs, http, dir, url, remote: 'origin' }

const operations = {
  async version() {
    console.log(git.version())
  },
  async list() {
    const refs = await git.listServerRefs({ http, url, protocolVersion: 2, peelTags: true })
    for (const { ref, oid, peeled } of refs) {
      console.log(`${oid}\t${ref}`)
      if (peeled) console.log(`${peeled}\t${ref}^{}`)
    }
  },
  async clone() {
    await git.clone({ ...remote, noCheckout: true })
  },
  async shallow() {
    await git.clone({ ...remote, noCheckout: true, depth: 1, singleBranch: true, noTags: true })
  },
  async fetch() {
    await git.fetch({ ...remote })
  },
  async tags() {
    await git.fetch({ ...remote, tags: true })
  },
  async commit() {
    await git.init({ fs, dir })
    await git.addRemote({ fs, dir, remote: 'origin', url })
    await git.fetch({ ...remote, ref: id, singleBranch: true, depth: 1 })
  },
}

await operations[operation]()
