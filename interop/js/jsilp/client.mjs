// A stock Interledger client. It connects to a BTP server, does one thing, and
// prints what happened as lines of JSON. A receiver prints its address and secret
// first and stays until its input ends.
//
//   node client.mjs URL stream-receive MAX
//   node client.mjs URL stream-send ADDRESS SECRET AMOUNT
//   node client.mjs URL psk2-receive
//   node client.mjs URL psk2-send ADDRESS SECRET AMOUNT COUNT [LEAST]

import { createRequire } from 'node:module'

const require = createRequire(import.meta.url)
const BtpPlugin = require('ilp-plugin-btp')
const stream = require('ilp-protocol-stream')
const psk2 = require('ilp-protocol-psk2')

const [url, mode, ...args] = process.argv.slice(2)
const plugin = new BtpPlugin({ server: url })
const print = (line) => process.stdout.write(JSON.stringify(line) + '\n')
const inputEnds = () => new Promise((resolve) => process.stdin.resume().on('end', resolve))

const modes = {
  async 'stream-receive' (max) {
    const server = await stream.createServer({ plugin })
    let received = 0n
    server.on('connection', (connection) => connection.on('stream', (s) => {
      s.setReceiveMax(max)
      s.on('money', (amount) => { received += BigInt(amount) })
    }))
    const { destinationAccount, sharedSecret } = server.generateAddressAndSecret()
    print({ address: destinationAccount, secret: sharedSecret.toString('hex'), asset: server.assetCode, scale: server.assetScale })
    await inputEnds()
    print({ received: received.toString() })
  },

  async 'stream-send' (destinationAccount, secret, amount) {
    const connection = await stream.createConnection({ plugin, destinationAccount, sharedSecret: Buffer.from(secret, 'hex') })
    const s = connection.createStream()
    await s.sendTotal(amount, { timeout: 20000 })
    print({ sent: connection.totalSent, delivered: connection.totalDelivered, asset: connection.destinationAssetCode, scale: connection.destinationAssetScale })
    await connection.end()
  },

  async 'psk2-receive' () {
    let received = 0n
    const receiver = await psk2.createReceiver({
      plugin,
      requestHandler: async (request) => {
        if (!request.isFulfillable) return request.reject(Buffer.from('no'))
        received += BigInt(request.amount.toString(10))
        request.accept(Buffer.from('got ' + request.data.toString()))
      }
    })
    const { destinationAccount, sharedSecret } = receiver.generateAddressAndSecret()
    print({ address: destinationAccount, secret: sharedSecret.toString('hex') })
    await inputEnds()
    print({ received: received.toString() })
  },

  async 'psk2-send' (destinationAccount, secret, amount, count, least = amount) {
    await plugin.connect()
    const request = { destinationAccount, sharedSecret: Buffer.from(secret, 'hex'), sourceAmount: amount, data: Buffer.from('hi') }
    const probe = await psk2.sendRequest(plugin, { ...request, unfulfillableCondition: Buffer.alloc(32, 7) })
    print({ probe: probe.destinationAmount.toString(10), probe_code: probe.code })
    let delivered = 0n
    let answer
    for (let i = 0; i < count; i++) {
      const result = await psk2.sendRequest(plugin, { ...request, minDestinationAmount: least })
      if (!result.fulfilled) throw new Error('rejected: ' + result.code)
      delivered += BigInt(result.destinationAmount.toString(10))
      answer = result.data.toString()
    }
    const more = (BigInt(least) + 1n).toString()
    const tooLittle = await psk2.sendRequest(plugin, { ...request, minDestinationAmount: more })
    print({ delivered: delivered.toString(), answer, too_little: tooLittle.code, arrived: tooLittle.destinationAmount.toString(10) })
  }
}

try {
  await modes[mode](...args)
  process.exit(0)
} catch (err) {
  console.error(err)
  process.exit(1)
}
