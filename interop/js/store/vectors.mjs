// Writes the golden vectors of pb/storepb with the JavaScript implementation:
// one NAME.hex per message. TestVectors in pb/storepb builds the same messages
// in Go and compares bytes.
//
//   node vectors.mjs DIR
//
// @waku/proto 0.0.15 speaks store-query 3.0.0 and metadata; 0.0.7 is the last
// version with store 2.0.0-beta4.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { WakuMessage, proto_metadata, proto_store as v3 } from "@waku/proto";
import { proto_store as beta4 } from "waku-proto-beta4";

const dir = process.argv[2];
if (!dir) {
  console.error("usage: node vectors.mjs DIR");
  process.exit(2);
}

const bytes = (hex) => Uint8Array.from(Buffer.from(hex, "hex"));
const range = (from, n) => Uint8Array.from({ length: n }, (_, i) => from + i);
const hash = range(0x20, 32);
const time = 1681964442234143000n;

const proof = {
  proof: range(1, 4), merkleRoot: range(5, 4), epoch: range(9, 4), shareX: range(13, 4),
  shareY: range(17, 4), nullifier: range(21, 4), rlnIdentifier: range(25, 4),
};
const full = {
  payload: bytes("010203045445535405060708"), contentTopic: "/tally/1/demo/proto", version: 1,
  timestamp: time, meta: new TextEncoder().encode("super-secret"), rateLimitProof: proof, ephemeral: true,
};
const plain = { payload: bytes("00ff"), contentTopic: "/tally/1/demo/proto", timestamp: -1n };
const pubsubTopic = "/waku/2/rs/1/0";
const index = { digest: hash, receiverTime: time, senderTime: time, pubsubTopic };

const vectors = {
  message_full: WakuMessage.encode(full),
  message_plain: WakuMessage.encode(plain),
  message_timestamp_max: WakuMessage.encode({ payload: bytes("aa"), contentTopic: "x", timestamp: 9223372036854775807n }),
  // No vector of the smallest timestamp: the encoder of protons-runtime gets it wrong.

  v3_request_filter: v3.StoreQueryRequest.encode({
    requestId: "0f3c", includeData: true, pubsubTopic, contentTopics: ["/tally/1/demo/proto", "/tally/1/other/proto"],
    timeStart: time, timeEnd: time + 1n, messageHashes: [], paginationCursor: hash, paginationForward: true, paginationLimit: 20n,
  }),
  v3_request_hashes: v3.StoreQueryRequest.encode({
    requestId: "0f3d", includeData: false, contentTopics: [], messageHashes: [hash, range(0x60, 32)], paginationForward: false,
  }),
  v3_response_page: v3.StoreQueryResponse.encode({
    requestId: "0f3c", statusCode: 200, statusDesc: "OK",
    messages: [{ messageHash: hash, message: full, pubsubTopic }, { messageHash: range(0x60, 32) }], paginationCursor: hash,
  }),
  v3_response_refused: v3.StoreQueryResponse.encode({ requestId: "0f3c", statusCode: 402, statusDesc: "pay first", messages: [] }),

  beta4_query: beta4.HistoryRpc.encode({
    requestId: "0f3c",
    query: {
      pubsubTopic, contentFilters: [{ contentTopic: "/tally/1/demo/proto" }, { contentTopic: "/tally/1/other/proto" }],
      pagingInfo: { pageSize: 20n, cursor: index, direction: "FORWARD" }, startTime: time, endTime: time + 1n,
    },
  }),
  beta4_query_backward: beta4.HistoryRpc.encode({
    requestId: "0f3d", query: { contentFilters: [], pagingInfo: { pageSize: 5n, direction: "BACKWARD" } },
  }),
  beta4_response_page: beta4.HistoryRpc.encode({
    requestId: "0f3c",
    response: { messages: [full, plain], pagingInfo: { pageSize: 2n, cursor: index, direction: "FORWARD" }, error: "NONE" },
  }),
  beta4_response_invalid_cursor: beta4.HistoryRpc.encode({ requestId: "0f3c", response: { messages: [], error: "INVALID_CURSOR" } }),
  beta4_response_refused: beta4.HistoryRpc.encode({ requestId: "0f3c", response: { messages: [], error: "TOO_MANY_REQUESTS" } }),
  beta4_response_unavailable: beta4.HistoryRpc.encode({ requestId: "0f3c", response: { messages: [], error: "SERVICE_UNAVAILABLE" } }),

  metadata_request: proto_metadata.WakuMetadataRequest.encode({ clusterId: 1, shards: [] }),
  metadata_response: proto_metadata.WakuMetadataResponse.encode({ clusterId: 1, shards: [0, 1, 7, 300] }),
};

mkdirSync(dir, { recursive: true });
for (const [name, data] of Object.entries(vectors)) {
  writeFileSync(join(dir, name + ".hex"), Buffer.from(data).toString("hex") + "\n");
}
console.log(`${Object.keys(vectors).length} vectors in ${dir}`);
