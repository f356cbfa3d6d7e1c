// An HTTPS origin that offers h2 and HTTP/1.1 by ALPN. Usage: node h2_origin.js CERT KEY
// It prints one JSON line with its port when it is ready.
'use strict';
const fs = require('fs');
const http2 = require('http2');

const [certificate, key] = process.argv.slice(2).map((file) => fs.readFileSync(file));
const server = http2.createSecureServer({ cert: certificate, key, allowHTTP1: true }, (request, response) => {
  response.end(`origin saw ${request.httpVersion}\n`);
});
server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({ port: server.address().port })));
