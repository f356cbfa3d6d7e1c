// Node clients, as their users write them: no proxy and no CA is named here.
//
// Usage: node clients.mjs CLIENT BASE_URL GRPC_AUTHORITY. It fails unless the client gets what the
// origin serves.

import assert from 'node:assert/strict';
import https from 'node:https';
import { text } from 'node:stream/consumers';

const HELLO = 'hello from the origin of the test\n';
const UPLOAD = Buffer.alloc(5_000_000);

const clients = {
  async fetch(base) {
    assert.equal(await (await fetch(`${base}/hello`)).text(), HELLO);
    const counted = await fetch(`${base}/count`, { method: 'POST', body: UPLOAD });
    assert.equal(await counted.text(), '5000000');
  },
  async https(base) {
    const get = () => new Promise((resolve, reject) => https.get(`${base}/hello`, resolve).on('error', reject));
    const replies = await Promise.all(Array.from({ length: 20 }, async () => text(await get())));
    assert.deepEqual(new Set(replies), new Set([HELLO]));
  },
  async got(base) {
    const { default: got } = await import('got');
    assert.equal(await got(`${base}/hello`).text(), HELLO);
    assert.equal(await got.post(`${base}/count`, { body: UPLOAD }).text(), '5000000');
  },
  async undici(base) {
    const { request } = await import('undici');
    assert.equal(await (await request(`${base}/hello`)).body.text(), HELLO);
  },
  async axios(base) {
    const { default: axios } = await import('axios');
    assert.equal((await axios.get(`${base}/hello`)).data, HELLO);
    assert.equal((await axios.post(`${base}/count`, UPLOAD)).data, 5_000_000);
  },
  async 'axios-1.15'(base) {
    const { default: axios } = await import('axios-1.15');
    assert.equal((await axios.get(`${base}/hello`)).data, HELLO);
    assert.equal((await axios.post(`${base}/count`, UPLOAD)).data, 5_000_000);
  },
  async ky(base) {
    const { default: ky } = await import('ky');
    assert.equal(await ky(`${base}/hello`).text(), HELLO);
  },
  async needle(base) {
    const { default: needle } = await import('needle');
    assert.equal((await needle('get', `${base}/hello`)).body.toString(), HELLO);
  },
  async eventsource(base) {
    const { EventSource } = await import('eventsource');
    const seen = [];
    const source = new EventSource(`${base}/events`);
    await new Promise((resolve, reject) => {
      source.onerror = reject;
      source.onmessage = async ({ data }) => {
        seen.push(data);
        if (seen.length === 3) {
          // After the last event the origin ends the response, and the client would connect again.
          source.close();
          resolve();
        }
        await fetch(`${base}/confirm`, { method: 'POST' });
      };
    });
    assert.deepEqual(seen, ['0', '1', '2']);
  },
  async 'grpc-js'(_, authority) {
    const { default: grpc } = await import('@grpc/grpc-js');
    const same = (bytes) => bytes;
    const Client = grpc.makeClientConstructor({
      reverse: {
        path: '/test.Echo/Reverse',
        requestSerialize: same,
        requestDeserialize: same,
        responseSerialize: same,
        responseDeserialize: same,
      },
    });
    const client = new Client(authority, grpc.credentials.createSsl());
    const reply = await new Promise((resolve, reject) =>
      client.reverse(Buffer.from('abc'), (error, value) => (error ? reject(error) : resolve(value))));
    assert.equal(reply.toString(), 'cba');
    client.close();
  },
};

const [name, base, authority] = process.argv.slice(2);
if (name === 'list') {
  console.log(Object.keys(clients).join('\n'));
} else {
  await clients[name](base, authority);
  console.log(`${name}: ok`);
}
