// TLS in front of a broker that has none. Usage: tls_front.js PORT BROKER'S-PORT CERT KEY; says "ready", and lives until its input ends.
const fs = require("fs");
const net = require("net");
const tls = require("tls");
const [port, broker, cert, key] = process.argv.slice(2);

const options = { cert: fs.readFileSync(cert), key: fs.readFileSync(key) };
const server = tls.createServer(options, (client) => {
  const plain = net.connect(Number(broker), "127.0.0.1");
  client.on("error", () => plain.destroy());
  plain.on("error", () => client.destroy());
  client.pipe(plain).pipe(client);
});
server.on("tlsClientError", () => {});
server.listen(Number(port), "127.0.0.1", () => console.log("ready"));
process.stdin.on("end", () => process.exit(0)).resume();
