// Shows the cases that stand in the page, with NiiVue. Runs after the program that sets globalThis.Niivue.
const at = (name) => document.getElementById(`viewer-${name}`);
const VIEWS = ["axial", "coronal", "sagittal", "all", "volume"]; // NiiVue's numbers of them
const LABEL_INTENT = 1002; // NIfTI's

// NiiVue takes bytes in the place of an address
const volume = (name, text) => ({ url: Uint8Array.from(atob(text), (i) => i.charCodeAt(0)), name: `${name}.nii.gz` });

// NiiVue's table of colours of a label map, from [value, name, "#rrggbb"]
function colourTable(colours) {
  const rows = [[0, "", "#000000"], ...colours];
  const part = (from) => rows.map(([, , colour]) => parseInt(colour.slice(from, from + 2), 16));
  return {
    R: part(1), G: part(3), B: part(5), A: rows.map(([value]) => (value ? 255 : 0)),
    I: rows.map(([value]) => value), labels: rows.map(([, name]) => name),
  };
}

class Viewer {
  constructor(cases) {
    this.cases = cases;
    this.shown = { image: true };
    this.nv = new globalThis.Niivue({
      isRadiologicalConvention: true, sagittalNoseLeft: true, multiplanarLayout: 2, multiplanarShowRender: 1,
      crosshairColor: [1, 1, 1, 0.5], crosshairWidth: 0.4, crosshairWidthUnit: "percent", crosshairGap: 6, show3Dcrosshair: true, dragAndDropEnabled: false, loadingText: "",
      logLevel: "error", isNearestInterpolation: true, atlasOutline: 1,
    });
    this.nv.onLocationChange = (place) => this.tell(place);
  }

  async start() {
    at("stage").hidden = false;
    at("without").hidden = true;
    this.cases.forEach((one, number) => at("case").add(new Option(one.name, number)));
    await this.nv.attachToCanvas(at("canvas"));
    this.listen();
    await this.open(0);
  }

  listen() {
    at("case").addEventListener("change", () => this.open(Number(at("case").value)));
    at("view").addEventListener("change", () => this.look());
    at("window").addEventListener("change", () => this.light());
    at("fill").addEventListener("input", () => this.paint());
    at("layers").addEventListener("change", (event) => this.toggle(event.target.name, event.target.checked));
    // before NiiVue, whose own keys would do something else
    at("stage").addEventListener("keydown", (event) => this.press(event), true);
  }

  async open(number) {
    const one = this.cases[number];
    this.case = one;
    at("stage").dataset.case = "";
    await this.nv.loadVolumes([volume("image", one.image), ...one.layers.map((i, n) => volume(`layer${n}`, i.labels))]);
    one.layers.forEach((layer, n) => this.nv.volumes[n + 1].setColormapLabel(colourTable(layer.colours)));
    at("window").replaceChildren(...one.windows.map(([name], n) => new Option(name, n)));
    at("case").value = number;
    this.shown = { image: true, ...Object.fromEntries(one.layers.map((i, n) => [n, i.shown])) };
    this.listLayers();
    this.nv.setRenderAzimuthElevation(180, 15);
    this.light();
    this.paint();
    this.look();
    this.nv.scene.crosshairPos = this.nv.mm2frac(one.start);
    this.move(0, 0, 0);
    at("stage").dataset.case = one.name;
  }

  listLayers() {
    const entry = (name, text, colours) => {
      const label = document.createElement("label");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", name, checked: this.shown[name] });
      const chips = colours.flatMap(([, organ, colour]) => {
        const chip = Object.assign(document.createElement("span"), { className: "chip" });
        chip.style.background = colour;
        return colours.length > 1 ? [chip, ` ${organ} `] : [chip];
      });
      label.append(box, ` ${text} `, ...chips);
      return label;
    };
    const layers = this.case.layers.map((i, n) => entry(n, `${n + 1} ${i.name}`, i.colours));
    const had = at("layers").contains(document.activeElement);
    at("layers").replaceChildren(...layers, entry("image", "image", []));
    if (had) at("canvas").focus({ preventScroll: true }); // or keys would no longer reach the viewer
  }

  toggle(name, on) {
    this.shown[name] = on;
    at("layers").querySelector(`[name="${name}"]`).checked = on;
    this.paint();
  }

  // NiiVue outlines volumes of one intent, those of opacity 0 too
  paint() {
    const [image, ...layers] = this.nv.volumes;
    image.opacity = Number(this.shown.image);
    layers.forEach((layer, n) => {
      layer.opacity = this.shown[n] ? Number(at("fill").value) : 0;
      layer.hdr.intent_code = this.shown[n] ? LABEL_INTENT : 0;
    });
    this.nv.updateGLVolume();
  }

  light() {
    const [, low, high] = this.case.windows[at("window").selectedIndex] ?? ["", 0, 1];
    Object.assign(this.nv.volumes[0], { cal_min: low, cal_max: high });
    this.nv.updateGLVolume();
  }

  look() {
    this.nv.setSliceType(VIEWS.indexOf(at("view").value));
  }

  move(right, front, head) {
    this.nv.moveCrosshairInVox(right, front, head);
  }

  // where the cross is, and what is there
  tell({ mm, vox, values }) {
    const side = (value, plus, minus) => `${value < 0 ? minus : plus} ${Math.abs(value).toFixed(1)}`;
    const place = `${side(mm[0], "R", "L")}, ${side(mm[1], "A", "P")}, ${side(mm[2], "S", "I")} mm`;
    const found = this.case.layers.map((layer, n) => {
      const entry = layer.colours.find(([value]) => value === Math.round(values[n + 1]?.value ?? 0));
      return `${layer.name}: ${entry ? entry[1] : "none"}`;
    });
    const slices = this.nv.volumes[0].dimsRAS[3];
    at("status").textContent = [`slice ${vox[2] + 1} of ${slices}`, place, `value ${Number(values[0].value.toPrecision(4))}`, ...found].join("; ");
    if (this.case.note) at("status").textContent += `. ${this.case.note}`;
  }

  next(select, step) {
    const number = select.options.length;
    select.selectedIndex = (select.selectedIndex + step + number) % number;
    select.dispatchEvent(new Event("change"));
  }

  all() {
    const names = this.case.layers.map((_, n) => n);
    const on = !names.some((n) => this.shown[n]);
    names.forEach((n) => this.toggle(n, on));
  }

  press(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("select, input[type=range]")) return;
    const keys = {
      ArrowUp: () => this.move(0, 0, 1), ArrowDown: () => this.move(0, 0, -1),
      ArrowLeft: () => this.move(1, 0, 0), ArrowRight: () => this.move(-1, 0, 0), // as seen on the screen
      PageUp: () => this.move(0, 1, 0), PageDown: () => this.move(0, -1, 0),
      v: () => this.next(at("view"), 1), w: () => this.next(at("window"), 1),
      n: () => this.next(at("case"), 1), p: () => this.next(at("case"), -1),
      i: () => this.toggle("image", !this.shown.image), 0: () => this.all(),
    };
    this.case.layers.slice(0, 9).forEach((_, n) => (keys[n + 1] = () => this.toggle(n, !this.shown[n])));
    event.stopPropagation();
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  }
}

// not before it is seen: a page that is only read need not draw volumes
function whenSeen(element, then) {
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((i) => i.isIntersecting)) return;
    observer.disconnect();
    then();
  }).observe(element);
}

if (document.createElement("canvas").getContext("webgl2")) {
  whenSeen(document.getElementById("viewer"), () => new Viewer(JSON.parse(at("cases").textContent)).start());
}
