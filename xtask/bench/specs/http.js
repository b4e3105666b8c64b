// A server in another language, of an ordinary make: what a service does besides its system calls is part of what tracing slows down.
const http = require("http");

const server = http.createServer((request, response) => {
  const body = JSON.stringify({ ok: true, path: request.url });
  response.writeHead(200, { "Content-Type": "application/json", "Content-Length": body.length });
  response.end(body);
  // Whoever started it may know a tracer's id only.
  if (request.url === "/quit") process.exit(0);
});
server.listen(Number(process.argv[2]), "127.0.0.1");
