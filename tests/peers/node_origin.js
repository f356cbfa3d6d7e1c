// An origin over http and https: it answers each request with `hello NAME`, and each WebSocket with
// one text message `hello NAME`, where NAME is the first label of the host.
// Usage: node node_origin.js CERT KEY
// It prints one JSON line with its ports when it is ready.
'use strict';
const fs = require('fs');
const http = require('http');
const https = require('https');
const crypto = require('crypto');

const [cert, key] = process.argv.slice(2).map((file) => fs.readFileSync(file));
const greeting = (request) => `hello ${request.headers.host.split('.')[0]}`;

function answer(request, response) {
  request.resume().on('end', () => response.end(greeting(request)));
}

function upgrade(request, socket) {
  const accept = crypto.createHash('sha1')
    .update(request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11')
    .digest('base64');
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
    `Sec-WebSocket-Accept: ${accept}\r\n\r\n`);
  const text = Buffer.from(greeting(request));
  socket.write(Buffer.concat([Buffer.from([0x81, text.length]), text]));
  socket.on('error', () => {});
}

const servers = [http.createServer(answer), https.createServer({ cert, key }, answer)];
let waiting = servers.length;
for (const server of servers) {
  server.on('upgrade', upgrade);
  server.listen(0, '127.0.0.1', () => {
    waiting -= 1;
    if (waiting > 0) return;
    const [plain, secure] = servers.map((listening) => listening.address().port);
    console.log(JSON.stringify({ plain, secure }));
  });
}
