"use strict";

const METHODS = {
  gradcam: ["Grad-CAM", "in yellow, conv5 supports the class"],
  gradient: ["Gradient", "yellow pixels change the score most"],
  smoothgrad: ["SmoothGrad", "yellow pixels change the score most, on average over noisy copies"],
  integrated: ["Integrated gradients", "red supports the class, blue counts against it"],
  occlusion: ["Occlusion", "covering a red area lowers the score"],
  guided: ["Guided backprop", "shows edges; depends little on the class"],
};
const TOKEN = "tf-alexnet-token";
const NEIGHBOURS = 8;
const TRIES = 10; // while the server is busy

const at = (id) => document.getElementById(id);

let about = null; // facts about the server
let photo = null; // the File shown
let target = null; // index of the class explained; null for the most probable one
let running = new AbortController(); // aborts the requests of the previous photo
const urls = new Map(); // element -> object URL it shows

function say(text) {
  at("status").textContent = text;
}

function fail(text) {
  at("error").hidden = !text;
  at("error").textContent = text || "";
}

/** Make an element with text and attributes. */
function make(name, text, attributes = {}) {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function show(image, blob, alt) {
  URL.revokeObjectURL(urls.get(image));
  urls.set(image, URL.createObjectURL(blob));
  image.src = urls.get(image);
  image.alt = alt;
  image.classList.remove("waiting");
}

/** Send a request; the error message of a refusal is thrown. */
async function call(path, fields, signal) {
  const options = { headers: {}, signal };
  const token = sessionStorage.getItem(TOKEN);
  if (token) options.headers.Authorization = `Bearer ${token}`;
  if (fields) {
    options.method = "POST";
    options.body = new FormData();
    for (const [key, value] of Object.entries(fields)) options.body.append(key, value);
  }
  let response;
  for (let tries = 0; tries < TRIES; tries++) {
    try {
      response = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server is not responding.");
    }
    const wait = response.status === 503 && Number(response.headers.get("Retry-After"));
    if (!wait) break;
    await new Promise((done) => setTimeout(done, 1000 * wait));
  }
  if (response.ok) return response;
  if (response.status === 401) {
    at("network").textContent = "";
    at("token-form").hidden = false;
    throw new Error(token ? "Wrong token." : "");
  }
  let found = `The server returned ${response.status}.`;
  try {
    found = (await response.json()).error;
  } catch {
    // not our JSON: keep the status
  }
  throw new Error(found);
}

/** Update a part of the page; a newer photo aborts it silently. */
async function part(work) {
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") {
      say("");
      fail(error.message);
    }
  }
}

async function open(file) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  fail("");
  at("result").hidden = true;
  if (file.size > about.limits.body) {
    say("");
    fail(`${file.name}: the file is larger than ${about.limits.body >> 20} MiB.`);
    return;
  }
  photo = file;
  target = null;
  say(`Analysing ${file.name} …`);
  await part(async () => {
    const path = `/predict?top=5&neighbours=${about.index ? NEIGHBOURS : 0}`;
    const [found] = await call(path, { photo: file }, signal).then(
      async (response) => (await response.json()).photos,
      (error) => {
        if (error.name !== "AbortError") error.message = `${file.name}: ${error.message}`;
        throw error;
      },
    );
    show(at("photo"), file, file.name);
    showClasses(found.predictions);
    at("result").hidden = false;
    const best = found.predictions[0];
    say(best ? `${best.label}, ${percent(best.probability)}` : `Features of ${file.name} computed.`);
    part(() => showNeighbours(found.neighbours || [], signal));
    part(() => heatMap(signal));
    part(() => activations(signal));
  });
}

function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}

function showClasses(predictions) {
  const bars = predictions.map((found) => {
    const button = make("button", "", { type: "button", "aria-pressed": "false" });
    const name = make("span", found.label);
    if (found.synset) name.append(" ", make("span", found.synset, { class: "synset" }));
    const track = make("span", "", { class: "track", "aria-hidden": "true" });
    const bar = make("span", "", { class: "bar" });
    bar.style.width = `${100 * found.probability}%`;
    track.append(bar);
    button.append(name, make("span", percent(found.probability), { class: "percent" }), track);
    button.dataset.index = found.index;
    button.addEventListener("click", () => {
      target = found.index;
      part(() => heatMap(running.signal));
    });
    const item = make("li", "");
    item.append(button);
    return item;
  });
  at("bars").replaceChildren(...bars);
  at("classes").hidden = !bars.length;
}

function chosen(group) {
  return document.querySelector(`input[name=${group}]:checked`).value;
}

let heatMaps = 0; // number requested: only the last is shown

async function heatMap(signal) {
  const mine = ++heatMaps;
  const method = chosen("methods");
  const caption = at("caption");
  if (!method) {
    show(at("photo"), photo, photo.name);
    caption.textContent = "";
    return;
  }
  at("photo").classList.add("waiting");
  caption.textContent = `${METHODS[method][0]} …  (the first heat map takes a few seconds)`;
  try {
    const fields = { photo, method };
    if (target !== null) fields.class = target;
    const response = await call("/saliency", fields, signal);
    const found = JSON.parse(response.headers.get("X-Heat-Map"));
    const picture = await response.blob();
    if (mine !== heatMaps) return;
    let text = `${METHODS[method][0]} for ${found.label}, score ${found.score.toFixed(2)}: `;
    text += found.constant ? "the map is constant" : METHODS[method][1];
    if (found.gap > 0.05) text += `; unreliable, with a completeness gap of ${percent(found.gap)}`;
    caption.textContent = `${text}.`;
    show(at("photo"), picture, caption.textContent);
    for (const button of document.querySelectorAll("#bars button")) {
      button.setAttribute("aria-pressed", Number(button.dataset.index) === found.class);
    }
  } catch (error) {
    if (mine === heatMaps && error.name !== "AbortError") {
      caption.textContent = `No heat map: ${error.message}`;
      show(at("photo"), photo, photo.name);
    }
  }
}

let mosaics = 0;

async function activations(signal) {
  const mine = ++mosaics;
  const layer = chosen("layers");
  at("mosaic").classList.add("waiting");
  const response = await call("/activations", { photo, layer }, signal);
  const found = JSON.parse(response.headers.get("X-Activations"));
  const picture = await response.blob();
  if (mine !== mosaics) return;
  const [height, width, channels] = found.shape;
  const text = `${layer}: ${channels} channels of ${height} by ${width}, strongest first; ` +
    `${percent(found.above_zero)} above zero, largest ${found.largest.toFixed(1)}.`;
  show(at("mosaic"), picture, text);
  at("mosaic-caption").textContent = text;
}

async function showNeighbours(neighbours, signal) {
  const items = neighbours.map((found) => {
    const item = make("li", "");
    const image = make("img", "", { alt: found.name, class: "waiting" });
    item.append(image, make("p", `${found.similarity.toFixed(3)}  ${found.name}`));
    call(`/photos/${found.row}`, null, signal)
      .then((response) => response.blob())
      .then((blob) => show(image, blob, found.name))
      .catch(() => {}); // its file is gone: name and similarity remain
    return item;
  });
  for (const image of urls.keys()) {
    if (at("neighbours").contains(image)) {
      URL.revokeObjectURL(urls.get(image));
      urls.delete(image);
    }
  }
  at("neighbours").replaceChildren(...items);
}

function chips(id, names, label, changed) {
  const parts = names.flatMap((name, place) => {
    const input = make("input", "", { type: "radio", name: id, id: `${id}-${place}`, value: name });
    input.className = "hidden-text";
    input.addEventListener("change", changed);
    return [input, make("label", label(name), { for: input.id })];
  });
  at(id).replaceChildren(...parts);
}

function describe() {
  const known = about.trained_as ? `the weights of ${about.trained_as}` : "unknown weights";
  const trained = about.run ? "a RUN of tf-alexnet train" : about.untrained ? "untrained" : known;
  at("network").textContent = `${about.architecture}, ${about.weights} (${trained})`;
  let warning = "";
  if (about.untrained) warning = "Untrained: the weights are random, and the predictions mean nothing.";
  else if (!about.classes) warning = "These weights have no classifier: features and pictures only.";
  else if (!about.run && !about.trained_as) {
    warning = "Not the weights of a known network: the predictions may mean nothing.";
  }
  at("warning").textContent = warning;
  at("warning").hidden = !warning;
  const facts = {
    Network: about.architecture,
    Weights: about.weights,
    Digest: about.weights_digest,
    Training: trained,
    Preset: about.preset,
    Classes: about.classes ?? "none",
    Engine: about.engine,
    Index: about.index ? `${about.index.photos} photos, ${about.index.layer}` : "none",
    Version: `tf_alexnet ${about.version}`,
  };
  const rows = Object.entries(facts).flatMap(([key, value]) => [make("dt", key), make("dd", value)]);
  at("facts").replaceChildren(...rows);
  if (about.multi_label) {
    at("classes-hint").textContent = "Each class has a probability of its own; they don't add up to " +
      "100 %. Choose a class to see what supports it.";
  }
  at("similar").hidden = !about.index;
  if (about.index) {
    at("similar-hint").textContent =
      `By cosine similarity of ${about.index.layer}, among ${about.index.photos} photos.`;
  }
  const again = (work) => () => photo && part(() => work(running.signal));
  const name = (method) => METHODS[method]?.[0] ?? (method || "Photo only");
  chips("methods", [...about.methods, ""], name, again(heatMap));
  chips("layers", about.layers, (layer) => layer, again(activations));
  at("methods").querySelector("input").checked = true;
  at("layers").querySelector("input").checked = true;
}

async function start() {
  await part(async () => {
    about = await (await call("/about")).json();
    at("token-form").hidden = true;
    fail("");
    describe();
  });
}

/** Open the file of a drop, a paste or an input. */
function take(files) {
  if (!files.length) fail("That is not a file. Save the picture, then choose it.");
  else if (about) open(files[0]);
}

for (const id of ["file", "capture"]) {
  at(id).addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = ""; // allows choosing the same file again
  });
}

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) at("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.target === at("token")) return;
  take(event.clipboardData.files);
});

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, at("token").value);
  start();
});

function closeCamera() {
  for (const track of at("video").srcObject?.getTracks() ?? []) track.stop();
  at("video").srcObject = null;
  at("camera-dialog").close();
}

at("camera").addEventListener("click", async () => {
  // Browsers allow the camera on localhost and https only; phones have an app instead.
  if (!navigator.mediaDevices?.getUserMedia) {
    at("capture").click();
    return;
  }
  try {
    at("video").srcObject = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment" },
    });
    at("camera-dialog").showModal();
  } catch (error) {
    fail(`No camera (${error.message || error.name}).`);
  }
});
at("camera-close").addEventListener("click", closeCamera);
at("camera-dialog").addEventListener("cancel", closeCamera);
at("shoot").addEventListener("click", () => {
  const video = at("video");
  const canvas = make("canvas", "");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  closeCamera();
  canvas.toBlob((blob) => take([new File([blob], "camera.jpg", { type: blob.type })]), "image/jpeg", 0.95);
});

start();
