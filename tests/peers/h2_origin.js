// An HTTPS origin that speaks h2 and HTTP/1.1 by ALPN: `node h2_origin.js CERT KEY`, one JSON line when ready.
'use strict';
const fs = require('fs');
const http2 = require('http2');

const [certificate, key] = process.argv.slice(2).map((file) => fs.readFileSync(file));
const server = http2.createSecureServer({ cert: certificate, key, allowHTTP1: true }, (request, response) => {
  response.end(`origin saw ${request.httpVersion}\n`);
});
server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({ port: server.address().port })));
