// A stock js-libp2p peer that speaks /vac/waku/swap/2.0.0-alpha1.
//
//   node client.mjs MULTIADDR [--threshold N] [--cheques N] [--amount K]
//                   [--beneficiary TEXT] [--bad oversize|garbage|truncated]
//
// It dials over TCP or WebSocket, writes its handshake, prints ours, sends the
// cheques, then what --bad asks for, and closes. One JSON object a line on
// standard output: {"peer"}, {"threshold"}, {"sent"}, {"end"}. The end is "eof"
// or the message of the error that the stream ended with.
//
// Frames are written by hand here, so that both ends do not share an encoder.
import { parseArgs } from 'node:util'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { tcp } from '@libp2p/tcp'
import { webSockets } from '@libp2p/websockets'
import { multiaddr } from '@multiformats/multiaddr'
import { byteStream } from 'it-byte-stream'
import { createLibp2p } from 'libp2p'

// Node 20 lacks what dependencies of libp2p 2 use by now.
Promise.withResolvers ??= function () {
  const out = {}
  out.promise = new Promise((resolve, reject) => Object.assign(out, { resolve, reject }))
  return out
}

const PROTOCOL = '/vac/waku/swap/2.0.0-alpha1'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threshold: { type: 'string', default: '100' },
    cheques: { type: 'string', default: '0' },
    amount: { type: 'string', default: '1' },
    beneficiary: { type: 'string' },
    bad: { type: 'string' }
  }
})

function say (object) {
  process.stdout.write(JSON.stringify(object) + '\n')
}

function varint (n) {
  const out = []
  for (let v = BigInt(n); ; v >>= 7n) {
    if (v < 0x80n) {
      return Uint8Array.from([...out, Number(v)])
    }
    out.push(Number(v & 0x7fn) | 0x80)
  }
}

function concat (...parts) {
  return Uint8Array.from(parts.flatMap((p) => [...p]))
}

const bytesField = (number, b) => b.length === 0 ? [] : concat([number << 3 | 2], varint(b.length), b)
const numberField = (number, n) => BigInt(n) === 0n ? [] : concat([number << 3], varint(n))
const frame = (message) => concat(varint(message.length), message)

// bigEndian is the minimal form; 0 has no bytes.
function bigEndian (n) {
  const out = []
  for (let v = BigInt(n); v > 0n; v >>= 8n) {
    out.unshift(Number(v & 0xffn))
  }
  return Uint8Array.from(out)
}

async function readVarint (bytes) {
  let n = 0n
  for (let shift = 0n; ; shift += 7n) {
    const b = (await bytes.read({ bytes: 1 })).subarray()[0]
    n |= BigInt(b & 0x7f) << shift
    if (b < 0x80) {
      return Number(n)
    }
  }
}

// readHandshake returns the threshold of a Handshake: field 1, bytes.
async function readHandshake (bytes) {
  const length = await readVarint(bytes)
  if (length === 0) {
    return 0n
  }
  const message = (await bytes.read({ bytes: length })).subarray()
  if (message[0] !== 0x0a || message[1] !== message.length - 2) {
    throw new Error(`no handshake: ${Buffer.from(message).toString('hex')}`)
  }
  return message.subarray(2).reduce((n, b) => n << 8n | BigInt(b), 0n)
}

const node = await createLibp2p({
  transports: [tcp(), webSockets()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify() },
  connectionGater: { denyDialMultiaddr: () => false } // loopback over WebSocket
})

let failed = false
try {
  const addr = multiaddr(positionals[0])
  const stream = await node.dialProtocol(addr, PROTOCOL)
  const bytes = byteStream(stream)
  say({ peer: node.peerId.toString() })

  await bytes.write(frame(bytesField(1, bigEndian(values.threshold))))
  say({ threshold: (await readHandshake(bytes)).toString() })

  const beneficiary = new TextEncoder().encode(values.beneficiary ?? addr.getPeerId())
  const cheque = frame(concat(
    bytesField(1, beneficiary),
    numberField(2, Math.floor(Date.now() / 1000)),
    numberField(3, values.amount)
  ))
  const count = Number(values.cheques)
  for (let i = 0; i < count; i++) {
    await bytes.write(cheque)
  }
  say({ sent: count })

  switch (values.bad) {
    case undefined:
      break
    case 'oversize': // a length of 4097
      await bytes.write(Uint8Array.from([0x81, 0x20]))
      break
    case 'garbage':
      await bytes.write(Uint8Array.from([3, 0xff, 0xff, 0xff]))
      break
    case 'truncated': // ten bytes announced, one written
      await bytes.write(Uint8Array.from([10, 0x0a]))
      break
    default:
      throw new Error(`--bad ${values.bad}: want oversize, garbage or truncated`)
  }
  if (values.bad === undefined || values.bad === 'truncated') {
    await stream.closeWrite()
  }
  let end = 'eof'
  try {
    while ((await bytes.read()) != null);
  } catch (err) {
    end = err.name === 'UnexpectedEOFError' ? 'eof' : `${err.name}: ${err.message}`
  }
  say({ end })
} catch (err) {
  console.error(err)
  failed = true
} finally {
  await node.stop()
}
process.exit(failed ? 1 : 0)
