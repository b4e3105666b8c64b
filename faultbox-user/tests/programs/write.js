const fs = require("fs");
let last;
function once() {
  fs.writeFile(process.argv[2], "x", (e) => {
    const now = e ? e.code : "ok";
    if (now !== last) console.log(now);
    last = now;
    setTimeout(once, 1);
  });
}
once();
