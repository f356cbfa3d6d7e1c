'use strict';

// Makes Node's HTTP clients use the proxy variables (`--node-hook`). NODE_OPTIONS=--require loads
// it into every Node program, also for ES modules and in worker threads, before the program starts.
//
// It acts where a socket connects, so it serves http, https, http2, fetch, undici and what is built
// on them, with the agents that the program has. Only the connections of these clients go through
// a tunnel (CONNECT): those of other protocols, such as a database, stay direct.
//
// It must not break a program. If a part of Node that it needs is missing, or if it throws, the
// connection is direct. ES2018, no dependency.

function install() {
  const MARK = Symbol.for('upstreamproxy.node-hook');
  const HEAD_LIMIT = 16 * 1024;
  // The part of a refusal's text that an error message shows.
  const REASON_LIMIT = 1024;

  if (process.versions.bun || process.versions.deno || process[MARK]) return;

  // The proxy that a variable names, or null.
  function parseProxy(text) {
    try {
      const url = new URL(text);
      if (url.protocol !== 'http:') return null;
      const login = decodeURIComponent(url.username) + ':' + decodeURIComponent(url.password);
      return {
        host: url.hostname.replace(/^\[|\]$/g, ''),
        port: Number(url.port) || 80,
        shown: url.host,
        authorization: login === ':' ? '' : 'Basic ' + Buffer.from(login).toString('base64'),
      };
    } catch (_) {
      return null;
    }
  }

  const env = process.env;
  const secureProxy = parseProxy(env.https_proxy || env.HTTPS_PROXY);
  const plainProxy = parseProxy(env.http_proxy || env.HTTP_PROXY);
  if (!secureProxy && !plainProxy) return;

  const net = require('net');
  const http = require('http');
  const diagnostics = require('diagnostics_channel');

  // ---- Which hosts are direct --------------------------------------------------------------

  const directAddresses = new net.BlockList();
  for (const [address, bits] of [['127.0.0.0', 8], ['0.0.0.0', 32]]) {
    directAddresses.addSubnet(address, bits, 'ipv4');
    directAddresses.addSubnet('::ffff:' + address, 96 + bits, 'ipv6');
  }
  for (const address of ['::1', '::']) directAddresses.addAddress(address, 'ipv6');
  const directNames = [{ name: 'localhost', port: 0 }];
  let allDirect = false;

  // As in curl and Go: a name with its subdomains, an address, a network, each but the network
  // with or without a port, or `*`.
  function addDirect(entry) {
    if (entry === '*') {
      allDirect = true;
      return;
    }
    const network = /^([0-9a-fA-F:.]+)\/(\d+)$/.exec(entry);
    const family = net.isIP(network ? network[1] : entry);
    if (family) {
      const bits = network ? Number(network[2]) : family === 6 ? 128 : 32;
      directAddresses.addSubnet(network ? network[1] : entry, bits, 'ipv' + family);
      return;
    }
    const parts = /^\*?\.?\[?(.+?)\]?(?::(\d+))?$/.exec(entry);
    if (parts) directNames.push({ name: parts[1].toLowerCase(), port: Number(parts[2]) || 0 });
  }
  const noProxy = (env.NO_PROXY || '') + ',' + (env.no_proxy || '');
  for (const entry of noProxy.split(/[\s,]+/)) {
    try {
      if (entry) addDirect(entry);
    } catch (_) {
      // No host can match it.
    }
  }

  function isDirect(host, port) {
    if (allDirect) return true;
    const family = net.isIP(host);
    if (family && directAddresses.check(host, 'ipv' + family)) return true;
    return directNames.some((entry) => (host === entry.name || host.endsWith('.' + entry.name)) &&
      (entry.port === 0 || entry.port === port));
  }

  // ---- Which connections belong to an HTTP client ------------------------------------------

  // The connection that such a client opens in the same call: { host, port }.
  let expected = null;
  // The servers that a program's own undici dispatcher uses as proxies.
  const programProxies = new Set();

  // An agent of http or https. A CONNECT request, and one with a whole URL, goes to a proxy of the
  // program.
  const createSocket = http.Agent.prototype.createSocket;
  if (typeof createSocket !== 'function') return;

  function createSocketOfAgent(request, options) {
    const before = expected;
    const toProxy = request.method === 'CONNECT' || /^https?:/i.test(request.path);
    const merged = Object.assign({}, options, this.options);
    expected = toProxy ? null : { host: merged.host, port: Number(merged.port) };
    try {
      return createSocket.apply(this, arguments);
    } finally {
      expected = before;
    }
  }

  // undici, that of fetch and others, reports each connection before it opens it.
  const subscriptions = {
    'undici:client:beforeConnect': (message) => {
      const to = message.connectParams;
      const port = Number(to.port) || (to.protocol === 'https:' ? 443 : 80);
      expected = { host: to.hostname, port };
      // A connector of the program may have opened another connection, or none.
      queueMicrotask(() => { expected = null; });
    },
    'undici:request:create': (message) => {
      const request = message.request;
      if (request.method !== 'CONNECT' && !/^https?:/i.test(request.path)) return;
      const url = new URL(String(request.origin));
      const port = Number(url.port) || (url.protocol === 'https:' ? 443 : 80);
      programProxies.add(url.hostname.replace(/^\[|\]$/g, '') + ':' + port);
    },
  };

  function isOfHttpClient(socket, options) {
    if (programProxies.has(options.host + ':' + options.port)) return false;
    if (expected && expected.host === options.host && expected.port === Number(options.port)) {
      return true;
    }
    // A request without an agent (ws) passes its own options to a function that connects.
    if (typeof options.createConnection === 'function') return options.method !== 'CONNECT';
    // http2, and got's test whether a server has it.
    const protocols = options.ALPNProtocols;
    return Boolean(socket.encrypted) && Array.isArray(protocols) && protocols.includes('h2');
  }

  // The tunnel that a connection needs: { proxy, target }, or null.
  function route(socket, options) {
    if (!options || options.path || socket.destroyed) return null;
    const proxy = socket.encrypted ? secureProxy : plainProxy;
    const port = Number(options.port);
    if (!proxy || !options.host || !port || !isOfHttpClient(socket, options)) return null;
    const host = String(options.host).toLowerCase().replace(/\.$/, '');
    const isProxy = host === proxy.host && port === proxy.port;
    if (isProxy || isDirect(host, port) || !/^[a-z0-9._:-]+$/.test(host)) return null;
    return { proxy, target: (host.includes(':') ? '[' + host + ']' : host) + ':' + port };
  }

  // ---- The tunnel --------------------------------------------------------------------------

  const connect = net.Socket.prototype.connect;
  // Node 20 and later can give a socket another handle, for its attempts at several addresses.
  const reinitialize = Object.getOwnPropertySymbols(net.Socket.prototype)
    .find((symbol) => symbol.description === 'kReinitializeHandle');
  const ownerOf = (handle) => Object.getOwnPropertySymbols(handle)
    .find((symbol) => symbol.description === 'owner_symbol');

  // The same for Node 18.
  function replaceHandle(socket, handle) {
    const owner = ownerOf(handle);
    if (!socket.encrypted) {
      socket._handle = handle;
      handle[owner] = socket;
      return;
    }
    const old = socket._handle;
    const [name, session] = [old.getServername(), old.getSession()];
    const wrapped = socket._wrapHandle(null, handle, false);
    wrapped.onread = old.onread;
    wrapped[owner] = socket;
    old.close();
    socket._handle = wrapped;
    socket._init();
    if (session) socket.setSession(session);
    if (name) socket.setServername(name);
  }

  // Gives `handle`, which is connected to `port` of the target, to `socket`.
  function adopt(socket, handle, port) {
    const old = socket._handle;
    const unref = old && typeof old.hasRef === 'function' && !old.hasRef();
    handle.setNoDelay(true);
    if (reinitialize) socket[reinitialize](handle);
    else replaceHandle(socket, handle);
    if (socket.encrypted) socket.ssl = socket._handle;
    if (unref) socket.unref();
    // http2 compares an origin with it.
    Object.defineProperty(socket, 'remotePort', { value: port, configurable: true });
  }

  // After `adopt` has thrown.
  function retryDirect(socket, handle, options) {
    handle.close();
    socket.connecting = false;
    if (socket.encrypted) {
      socket.destroy(failure('this version of Node cannot use a tunnel; run without --node-hook'));
      return;
    }
    socket._handle = null;
    connect.call(socket, options);
  }

  // An error of `socket`, in the form that Node's own support of proxies uses.
  function failure(text, fields) {
    const error = new Error('upstreamproxy: ' + text);
    return Object.assign(error, { code: 'ERR_PROXY_TUNNEL' }, fields);
  }

  // The answer to the CONNECT request in `bytes`: { status, line, reason, rest }, or null if it is
  // not complete.
  function parseAnswer(bytes, ended) {
    const end = bytes.indexOf('\r\n\r\n');
    if (end < 0) return null;
    const head = bytes.toString('latin1', 0, end);
    const parts = /^HTTP\/1\.[01] (\d{3})(?: ?([^\r\n]*))/.exec(head);
    if (!parts) return { status: 0, line: 'no HTTP response', reason: '' };
    const status = Number(parts[1]);
    const rest = bytes.slice(end + 4);
    if (status >= 200 && status < 300) return { status, rest };
    const length = /^content-length: *(\d+)/im.exec(head);
    const needed = Math.min(length ? Number(length[1]) : 0, REASON_LIMIT);
    if (rest.length < needed && !ended) return null;
    const reason = rest.toString('utf8', 0, REASON_LIMIT).trim().split('\n')[0];
    return { status, line: (parts[1] + ' ' + parts[2]).trim(), reason };
  }

  // Connects `socket` through a tunnel. Until the tunnel is open, `socket` is connecting, and
  // another socket speaks with the proxy.
  function connectThrough(proxy, target, socket, options) {
    const carrier = new net.Socket();
    let received = Buffer.alloc(0);
    let done = false;
    const close = () => carrier.destroy();

    const fail = (error) => {
      if (done) return;
      done = true;
      carrier.destroy();
      socket.connecting = false;
      socket.destroy(error);
    };
    const refused = (answer) => fail(failure(
      'the proxy ' + proxy.shown + ' opened no tunnel to ' + target + ': ' +
        (answer.reason ? answer.status + ': ' + answer.reason : answer.line),
      { statusCode: answer.status }));

    const opened = (rest) => {
      done = true;
      const handle = carrier._handle;
      handle.readStop();
      handle.reading = false;
      carrier._handle = null;
      // Node still works with the handle when this call returns.
      process.nextTick(() => {
        carrier.destroy();
        socket.removeListener('close', close);
        if (socket.destroyed) {
          handle.close();
          return;
        }
        try {
          adopt(socket, handle, Number(options.port));
        } catch (_) {
          retryDirect(socket, handle, options);
          return;
        }
        socket.connecting = false;
        if (rest.length > 0) socket.push(rest);
        socket.emit('connect');
        socket.emit('ready');
        if (!socket.destroyed && !socket.isPaused()) socket.read(0);
      });
    };

    const read = (chunk) => {
      received = chunk ? Buffer.concat([received, chunk]) : received;
      const answer = parseAnswer(received, !chunk);
      if (answer && answer.rest) opened(answer.rest);
      else if (answer) refused(answer);
      else if (!chunk) refused({ status: 0, line: 'it closed the connection' });
      else if (received.length > HEAD_LIMIT) refused({ status: 0, line: 'its response is too long' });
    };
    carrier.on('data', (chunk) => { if (!done) read(chunk); });
    carrier.on('end', () => { if (!done) read(null); });
    carrier.on('close', () => { if (!done) read(null); });
    carrier.on('error', (error) => fail(failure(
      'the proxy ' + proxy.shown + ' cannot be reached: ' + error.message +
        '; is upstreamproxy still running?',
      { code: error.code || 'ERR_PROXY_TUNNEL', cause: error })));
    connect.call(carrier, { host: proxy.host, port: proxy.port });
    const authorization = proxy.authorization &&
      'Proxy-Authorization: ' + proxy.authorization + '\r\n';
    carrier.write('CONNECT ' + target + ' HTTP/1.1\r\nHost: ' + target + '\r\n' + authorization +
      '\r\n');
    socket.connecting = true;
    socket.once('close', close);
  }

  // The options and the callback of the arguments of connect; Node has normalized them already,
  // except for a direct call of the method.
  function parseArguments(list) {
    if (Array.isArray(list[0])) return list[0];
    const callback = list[list.length - 1];
    const options = typeof list[0] === 'object' ? list[0] : { port: list[0], host: list[1] };
    return [options, typeof callback === 'function' ? callback : null];
  }

  function connectOfSocket() {
    try {
      const [options, callback] = parseArguments(arguments);
      const through = route(this, options);
      if (through) {
        connectThrough(through.proxy, through.target, this, options);
        if (callback) this.once('connect', callback);
        return this;
      }
    } catch (_) {
      // The connection is direct.
    }
    return connect.apply(this, arguments);
  }

  // Node 18 has all that `replaceHandle` needs; a later version without the symbol may not.
  if (!reinitialize && Number(process.versions.node.split('.')[0]) > 19) return;
  for (const name of Object.keys(subscriptions)) {
    diagnostics.channel(name).subscribe((message) => {
      try {
        subscriptions[name](message);
      } catch (_) {
        // The message of another version: its connections are direct.
      }
    });
  }
  // Reachable for as long as the process: a channel without references loses its subscribers.
  Object.defineProperty(process, MARK, {
    value: Object.keys(subscriptions).map((name) => diagnostics.channel(name)),
  });
  http.Agent.prototype.createSocket = createSocketOfAgent;
  net.Socket.prototype.connect = connectOfSocket;
}

try {
  install();
} catch (_) {
  // This Node is too different: it works without the hook.
}
