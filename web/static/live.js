// Puts each new picture of the tree in place, and keeps what the reader has folded.
"use strict";
const view = document.getElementById("view");
const link = document.getElementById("link");
const folded = new Set();

view.addEventListener("toggle", (e) => {
  if (e.target.open) folded.delete(e.target.id);
  else folded.add(e.target.id);
}, true);

const login = () => { location.assign("/console/login"); };

const source = new EventSource("/console/live");
source.addEventListener("login", login);
source.addEventListener("view", (e) => {
  view.innerHTML = JSON.parse(e.data);
  for (const id of folded) {
    const d = document.getElementById(id);
    if (d) d.open = false;
  }
});
source.onopen = () => { link.textContent = "live"; link.className = "link"; };
source.onerror = () => {
  link.textContent = "reconnecting";
  link.className = "link down";
  // A refusal ends an EventSource for good, and does not say why.
  if (source.readyState !== EventSource.CLOSED) return;
  const again = setInterval(async () => {
    try {
      const answer = await fetch("/console/live", { method: "HEAD" });
      if (answer.status === 401) login();
      else if (answer.ok) location.reload();
      else return;
      clearInterval(again);
    } catch { /* the core cannot be reached; asked again */ }
  }, 2000);
};
