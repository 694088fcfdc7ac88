// A stock @waku/sdk light client pages through a node's store and prints one
// JSON object: {pages, messages, sizes, peer, status?, status_desc?, error?}.
//
//   node query.mjs MULTIADDR CONTENT_TOPIC [--page-size N] [--cluster N]
//                  [--shards N | --shard N] [--backward] [--muxer yamux|default]
//
// MULTIADDR is a /ws address with peer id, e.g.
//   /ip4/127.0.0.1/tcp/8000/ws/p2p/16Uiu2…
// --shards N   the network shards by content topic over N shards (default 8,
//              the SDK's own default)
// --shard N    the network shards by hand and the topic is on shard N
//
// Exit 0 where the query came to its end, 3 where the store said 402, else 1.
//
// Two things of a default light client do not fit a node on loopback, and both
// are options of the SDK itself:
//   - it dials only /wss addresses; libp2p.filterMultiaddrs=false takes /ws;
//   - it speaks only the mplex muxer, which go-libp2p no longer has in its tree;
//     libp2p.streamMuxers takes yamux. --muxer default leaves it at mplex, for a
//     node that mounts mplex.
import "./node20.mjs";
import { parseArgs } from "node:util";
import { yamux } from "@chainsafe/libp2p-yamux";
import { createLightNode, Protocols } from "@waku/sdk";

const { values: opt, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    "page-size": { type: "string" },
    cluster: { type: "string", default: "1" },
    shards: { type: "string", default: "8" },
    shard: { type: "string" },
    backward: { type: "boolean", default: false },
    muxer: { type: "string", default: "yamux" },
    timeout: { type: "string", default: "20" },
  },
});
const [address, contentTopic] = positionals;
if (!address || !contentTopic) {
  console.error("usage: node query.mjs MULTIADDR CONTENT_TOPIC [options]");
  process.exit(2);
}

console.info = () => {}; // the SDK's banner; stdout is for the result
const result = { pages: 0, messages: 0, sizes: [] };
let code = 1;

const clusterId = Number(opt.cluster);
const networkConfig = opt.shard !== undefined ? { clusterId } : { clusterId, numShardsInCluster: Number(opt.shards) };
const libp2p = { filterMultiaddrs: false, hideWebSocketInfo: true };
if (opt.muxer === "yamux") {
  libp2p.streamMuxers = [yamux()];
}

const node = await createLightNode({
  defaultBootstrap: false,
  discovery: { dns: false, peerExchange: false, peerCache: false },
  networkConfig,
  libp2p,
});
try {
  await node.dial(address, [Protocols.Store]);
  await node.waitForPeers([Protocols.Store], Number(opt.timeout) * 1000);
  result.peer = (await node.getConnectedPeers())[0]?.id.toString();

  const decoder = node.createDecoder(
    opt.shard !== undefined ? { contentTopic, shardId: Number(opt.shard) } : { contentTopic },
  );
  const query = { paginationForward: !opt.backward };
  if (opt["page-size"]) {
    query.paginationLimit = Number(opt["page-size"]);
  }
  const seen = new Set();
  for await (const page of node.store.queryGenerator([decoder], query)) {
    const messages = (await Promise.all(page)).filter((m) => m !== undefined);
    result.pages++;
    result.sizes.push(messages.length);
    for (const m of messages) {
      seen.add(m.hashStr ?? Buffer.from(m.payload).toString("hex"));
    }
  }
  result.messages = seen.size;
  result.status = 200;
  code = 0;
} catch (err) {
  result.messages = result.sizes.reduce((a, b) => a + b, 0);
  const said = /status code: (\d+), description: (.*)/s.exec(err.message ?? "");
  if (said) {
    result.status = Number(said[1]);
    result.status_desc = said[2];
    code = result.status === 402 ? 3 : 1;
  } else {
    result.error = err.message ?? String(err);
  }
} finally {
  console.log(JSON.stringify(result));
  await node.stop();
  process.exit(code);
}
