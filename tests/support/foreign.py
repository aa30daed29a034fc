"""A web page of another origin, and what its script can try against servers on this machine."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Each way is given the addresses of the servers and the ids of a deployment and a run, which a
# stranger would have to guess. It returns what it could read. What it changed, the servers tell.
# fmt: off
WAYS = {
    "fetch a deployment": "return read(`${P}/api/deployments/name/distill/process`)",
    "fetch the settings": "return read(`${P}/api/admin/settings`)",
    "fetch runs, as JSON": "return read(runs, post(json, '{}'))",
    "fetch runs, as text": "return read(runs, post(text, '{}'))",
    "start a run, as JSON": "return read(start, post(json, body))",
    "start a run, as text": "return read(start, post(text, body, 'no-cors'))",
    "start a run by a beacon": "navigator.sendBeacon(start, body); await sleep(500)",
    "start a run by a form": "await form(start)",
    "read a run by XMLHttpRequest": """const x = new XMLHttpRequest();
        x.open('GET', `${P}/api/flow_runs/${run}`, false); x.send(); return x.responseText""",
    "read a run by a script": "return element('script', `${P}/api/flow_runs/${run}`)",
    "read events by a socket": "return socket(`${W}/api/events/out`, [], {type: 'subscribe'})",
    "send events by a socket": "return socket(`${W}/api/events/in`, [], event)",
    "read lines by a socket": "return socket(`${W}/api/logs/out`, ['prefect'], guess)",
    "send events with a guess": "return socket(`${W}/api/events/in`, ['prefect'], guess)",
    "read a page in a frame": "return frame(`${P}/runs`)",
    "fetch MLflow's runs": "return read(`${A}/runs/search`, post(json, ids))",
    "fetch MLflow's runs, as text": "return read(`${A}/runs/search`, post(text, ids))",
    "fetch MLflow's models": "return read(`${A}/registered-models/search`)",
    "make a run in MLflow": "return read(`${A}/runs/create`, post(text, id, 'no-cors'))",
    "make one by a form": "await form(`${A}/runs/create`)",
    "make one by a beacon": "navigator.sendBeacon(`${A}/runs/create`, id); await sleep(500)",
    "read MLflow in a frame": "return frame(`${M}/`)",
    "read MLflow by a script": "return element('script', `${A}/experiments/get?experiment_id=0`)",
    "read MLflow by a picture": "return element('img', `${M}/static-files/favicon.ico`)",
}
# fmt: on
SCRIPT = """async ({P, M, deployment, run, way}) => {
  const W = P.replace('http', 'ws'), A = `${M}/ajax-api/2.0/mlflow`;
  const json = 'application/json', text = 'text/plain';
  const runs = `${P}/api/flow_runs/filter`;
  const start = `${P}/api/deployments/${deployment}/create_flow_run`;
  const body = JSON.stringify({parameters: {}, enforce_parameter_schema: false});
  const ids = '{"experiment_ids": ["0"]}', id = '{"experiment_id": "0"}';
  const guess = {type: 'auth', token: 'retort:retort'};
  const event = {occurred: new Date().toISOString(), event: 'prefect.flow-run.Failed',
    resource: {'prefect.resource.id': `prefect.flow-run.${run}`}, id: run};
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
  const post = (type, content, mode = 'cors') => ({
    method: 'POST', body: content, mode, credentials: 'include', headers: {'content-type': type}});
  const read = async (url, how = {credentials: 'include'}) => {
    const answer = await fetch(url, how);
    return answer.ok ? await answer.text() : '';
  };
  const form = async (url) => {
    const it = document.createElement('form'), field = document.createElement('input');
    const target = document.createElement('iframe');
    target.name = `frame${Math.random()}`;
    Object.assign(it, {method: 'POST', action: url, enctype: 'text/plain', target: target.name});
    Object.assign(field, {name: '{"experiment_id": "0", "x": "', value: '"}'});
    it.append(field); document.body.append(target, it); it.submit(); await sleep(1000);
  };
  const element = async (tag, src) => new Promise((done) => {
    const it = document.createElement(tag);
    it.onload = () => done(`${tag} loaded`); it.onerror = () => done('');
    it.src = src; document.body.append(it);
  });
  const frame = async (src) => {
    const it = document.createElement('iframe');
    it.src = src; document.body.append(it); await sleep(2000);
    return it.contentDocument ? it.contentDocument.body.innerText : '';
  };
  const socket = async (url, protocols, message) => new Promise((done) => {
    const it = new WebSocket(url, protocols);
    it.onopen = async () => { it.send(JSON.stringify(message)); await sleep(1000);
      done(it.readyState === WebSocket.OPEN ? 'stays open' : ''); };
    it.onmessage = (said) => done(said.data);
    it.onerror = it.onclose = () => done('');
  });
  try { return String((await eval(`(async () => { ${way} })()`)) ?? ''); }
  catch (error) { return ''; }
}"""


@contextmanager
def serving(text: str = "<title>another page</title>") -> Iterator[int]:
    """The port of loopback on which a page is served to whoever asks, until the block ends."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
