// Runs HTTP clients of Node against node_origin.js. The host of each is NAME.origin.test, which only
// the gateway can resolve.
// Usage: node node_clients.js DIRECTORY_OF_PACKAGES PLAIN_PORT SECURE_PORT NAME...
// It prints one line for each: `NAME: ok`, or `NAME: ` and the error.
'use strict';
const http = require('http');
const http2 = require('http2');
const https = require('https');
const path = require('path');
const { createRequire } = require('module');
const { execFileSync } = require('child_process');
const { pathToFileURL } = require('url');
const { Worker } = require('worker_threads');

const [directory, plain, secure, ...names] = process.argv.slice(2);
const load = createRequire(path.join(directory, 'package.json'));
// For packages that are ES modules only.
const loadModule = (name) => import(pathToFileURL(load.resolve(name)).href);

const text = async (stream) => {
  let all = '';
  for await (const chunk of stream) all += chunk;
  return all;
};
const get = (client, url, options) => new Promise((resolve, reject) => {
  client.get(url, options || {}, (response) => resolve(text(response))).on('error', reject);
});
const message = (socket, of) => new Promise((resolve, reject) => {
  socket.onmessage = (event) => { resolve(event.data); socket.close(); };
  socket.onerror = (event) => reject(event.error || new Error(`WebSocket of ${of}`));
});
const inChild = (url, ...options) => String(execFileSync(process.execPath, [...options, url]));

const clients = {
  'http-get': (host) => get(http, `http://${host}:${plain}/`),
  'https-get': (host) => get(https, `https://${host}:${secure}/`),
  'https-post': (host) => new Promise((resolve, reject) => {
    const request = https.request(`https://${host}:${secure}/`, { method: 'POST' }, (response) => {
      resolve(text(response));
    });
    request.on('error', reject);
    for (let i = 0; i < 32; i += 1) request.write(Buffer.alloc(65536, 'x'));
    request.end();
  }),
  'https-agent': async (host) => {
    const agent = new https.Agent({ keepAlive: true, maxSockets: 1 });
    const url = `https://${host}:${secure}/`;
    const [first] = await Promise.all([get(https, url, { agent }), get(https, url, { agent })]);
    agent.destroy();
    return first;
  },
  fetch: async (host) => (await fetch(`https://${host}:${secure}/`)).text(),
  'fetch-http': async (host) => (await fetch(`http://${host}:${plain}/`)).text(),
  undici: async (host) => (await load('undici').request(`https://${host}:${secure}/`)).body.text(),
  got: async (host) => (await loadModule('got')).default(`https://${host}:${secure}/`).text(),
  ws: (host) => message(new (load('ws'))(`wss://${host}:${secure}/`), 'ws'),
  'ws-http': (host) => message(new (load('ws'))(`ws://${host}:${plain}/`), 'ws'),
  superagent: async (host) => {
    const body = (response, done) => text(response).then((all) => done(null, all), done);
    return (await load('superagent').get(`https://${host}:${secure}/`).buffer(true).parse(body)).body;
  },
  aws: async (host) => {
    const { S3Client, GetObjectCommand } = load('@aws-sdk/client-s3');
    const client = new S3Client({
      endpoint: `https://${host}:${secure}`,
      region: 'r',
      forcePathStyle: true,
      credentials: { accessKeyId: 'a', secretAccessKey: 'b' },
    });
    const object = await client.send(new GetObjectCommand({ Bucket: 'b', Key: 'k' }));
    return object.Body.transformToString();
  },
  axios: async (host) => (await load('axios').get(`https://${host}:${secure}/`)).data,
  // Only the connection: the origin has no HTTP/2.
  http2: (host) => new Promise((resolve) => {
    const session = http2.connect(`https://${host}:${secure}`);
    session.on('connect', () => session.destroy());
    session.on('error', () => {});
    session.on('close', () => resolve('hello http2'));
  }),
  worker: (host) => new Promise((resolve, reject) => {
    const script = `fetch('https://${host}:${secure}/').then((response) => response.text())
      .then((all) => require('worker_threads').parentPort.postMessage(all))`;
    new Worker(script, { eval: true }).on('message', resolve).on('error', reject);
  }),
  module: (host) => inChild(`import { get } from 'node:https';
    get('https://${host}:${secure}/', (response) => response.pipe(process.stdout))`,
  '--input-type=module', '-e'),
};

(async () => {
  for (const name of names) {
    let result = 'ok';
    try {
      const answer = await clients[name](`${name}.origin.test`);
      if (answer !== `hello ${name}`) result = `unexpected answer ${answer}`;
    } catch (error) {
      result = `${error}${error.cause ? `: ${error.cause}` : ''}`;
    }
    console.log(`${name}: ${result}`);
  }
  process.exit();
})();
