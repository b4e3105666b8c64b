// One request, one call: what Node makes of a failed system call. Answers {"failure": ""} or the exception as Node shows it.
"use strict";
const fs = require("fs");
const http = require("http");
const net = require("net");

function endpoint(addr) {
  const at = addr.lastIndexOf(":");
  return { host: addr.slice(0, at), port: Number(addr.slice(at + 1)) };
}

const ops = {
  async write(q) {
    const file = await fs.promises.open(q.get("path"), "w");
    try {
      await file.write("x");
    } finally {
      await file.close();
    }
  },
  async fsync(q) {
    const file = await fs.promises.open(q.get("path"), "w");
    try {
      await file.sync();
    } finally {
      await file.close();
    }
  },
  connect: (q) =>
    new Promise((resolve, reject) => {
      const socket = net.connect(endpoint(q.get("addr")), () => {
        socket.destroy();
        resolve();
      });
      socket.on("error", reject);
    }),
  get: (q) =>
    new Promise((resolve, reject) => {
      http
        .get({ ...endpoint(q.get("addr")), path: "/health", agent: false }, (reply) => {
          reply.on("error", reject).on("end", () => {
            if (reply.statusCode === 200) resolve();
            else reject(new Error(`HTTP ${reply.statusCode}`));
          });
          reply.resume();
        })
        .on("error", reject);
    }),
};

http
  .createServer(async (request, reply) => {
    const url = new URL(request.url, "http://app");
    let failure = "";
    if (url.pathname === "/do") {
      try {
        await ops[url.searchParams.get("op")](url.searchParams);
      } catch (e) {
        failure = `${e.name}: ${e.message}`;
      }
    }
    reply.setHeader("Content-Type", "application/json");
    reply.end(JSON.stringify({ failure }));
  })
  .listen(Number(process.env.FAULTBOX_APP_HTTP_PORT), "127.0.0.1");
