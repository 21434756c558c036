// What the annotator does: draw, take back, submit, go on to the next image.

// Drawing

const undoable = [];
let isDrawn = false; // something that the server does not have
let strokes = 0;

function toolGroups() {
  const get = service('toolGroupService', 'getToolGroup');
  return service('toolGroupService', 'getToolGroupIds')().map(id => [id, get(id)]);
}

const activeTool = () => {
  const { activeViewportId } = service('viewportGridService', 'getState')();
  return service('toolGroupService', 'getToolGroupForViewport')(activeViewportId)?.getActivePrimaryMouseButtonTool?.();
};

function choose(name) {
  drawing();
  for (const [toolGroupId, group] of toolGroups()) {
    if (group?.hasTool?.(TOOLS[name])) {
      window.commandsManager?.runCommand('setToolActive', { toolName: TOOLS[name], toolGroupId });
    }
  }
  if (activeTool() !== TOOLS[name]) {
    throw new Failure(`This release of OHIF does not offer its ${name.toLowerCase()} here; ${INSTEAD}.`);
  }
  resize();
  say(`${name}: drag with the left mouse button in the image.`);
}

function resize() {
  const value = Number(bar.size.value);
  bar.millimetres.textContent = `${value} mm`;
  window.commandsManager?.runCommand('setBrushSize', { value, toolNames: Object.values(TOOLS) });
}

/** Keeps the drawing as it is, for undo. */
function keep() {
  const copy = voxels(drawing().volume);
  undoable.push(copy);
  while (undoable.length > 1 && undoable.length > Math.min(UNDO_STEPS, UNDO_BYTES / copy.length)) {
    undoable.shift();
  }
}

function beforeStroke(event) {
  if (!isOpen() || event.button !== 0 || !event.target.closest?.('.cornerstone-viewport-element, .viewport-element')) {
    return;
  }
  try {
    if (Object.values(TOOLS).includes(activeTool())) {
      keep();
      if (isDoubtShown()) { // a new layout makes it the active one
        Array.from(service('viewportGridService', 'getState')().viewports.keys()).forEach(activate);
      }
      isDrawn = true;
      strokes += 1;
      stayHolder();
    }
  } catch (error) {
    report(error); // the stroke itself is OHIF's
  }
}

function undo() {
  const { volume } = drawing();
  const before = undoable.pop();
  if (!before) {
    throw new Failure('There is nothing left to take back.');
  }
  put(SEGMENTATION, volume, before);
  isDrawn = true;
  say('The last change is taken back.');
}

// Who has the image

const HOLD_MILLISECONDS = 60_000;
let heldAt = 0;

/** Tells the server that this browser works on an image; it answers whether it has a label, and who else has it. */
function hold(series) {
  heldAt = Date.now();
  return ask('POST', `svgd/hold?image=${encodeURIComponent(series)}`, { client_id: CLIENT });
}

/** A long drawing must not outlive what was taken at its beginning. */
function stayHolder() {
  if (Date.now() - heldAt > HOLD_MILLISECONDS) {
    hold(drawing().series).then(found => warn(found), () => {}); // submitting is another occasion
  }
}

/** Says what there is to know before somebody draws. */
async function takeHold(series) {
  const found = await hold(series);
  if (!warn(found) && found.labelled) {
    say('This image has a label. Yours would take its place; the older one is kept.');
  }
}

/** Says what speaks against going on with an image; whether there is anything. */
function warn(found) {
  const sentence = against(found);
  if (sentence) {
    say(sentence, 'bad');
  }
  return Boolean(sentence);
}

function against({ flagged, unusable, held_by: holder }) {
  if (flagged) {
    return `This image is flagged (${flagged}): a label of it is kept, but not learned from until it is put back.`;
  }
  if (unusable) {
    return `This image cannot be used (${unusable}): a label of it is kept, but not learned from.`;
  }
  if (holder) { // a browser's name says nothing to anybody
    const name = holder.startsWith('browser-') ? '' : ` (${holder})`;
    return `Somebody else${name} has this image in hand: take the next sample, or go on; both labels are kept.`;
  }
  return '';
}

// Submitting

let submitted; // the series and the version of its label that this page has saved

async function submit() {
  const { labels } = await info();
  const { series } = drawing();
  ofShown(series);
  // Where this cannot be answered, saving says why.
  const found = await hold(series).catch(() => ({}));
  // From here to the request nothing is waited for: a stroke is in the label, or counts as not submitted.
  const { segmentation, volume, series: drawn, place } = drawing();
  ofShown(drawn);
  const array = voxels(volume);
  checkOrder(array, volume, place);
  const known = structures(segmentation, labels);
  const counts = new Uint32Array(256);
  array.forEach(value => { counts[value] += 1; });
  const present = Array.from(counts.keys()).filter(value => value && counts[value]);
  const foreign = present.find(value => !known.some(([index]) => index === value));
  if (foreign !== undefined) {
    const name = segmentation.segments?.[foreign]?.label ?? `segment ${foreign}`;
    throw new Failure(`The drawing holds '${name}', a label can hold ${labels.join(', ')}: run their segmentation.`);
  }
  const empty = 'Nothing is drawn. Submit a label that says that none of the structures is in this image?';
  if (!present.length && !window.confirm(empty)) {
    throw new Failure('Nothing was submitted.');
  }
  const isHeld = drawn === series; // or else the page has gone on to another image meanwhile
  const isOwn = submitted?.series === series && submitted.version === found.version;
  const replace = 'This image has a label. Put yours in its place? The older one is kept.';
  if (!isHeld || (found.labelled && !isOwn && !window.confirm(replace))) {
    throw new Failure('Nothing was submitted.');
  }
  say('Submitting …');
  const names = known.map(([idx, name]) => ({ name, idx }));
  const form = asForm({
    params: JSON.stringify({ label_info: names, client_id: CLIENT }),
    label: new File([array], 'label.bin'),
  });
  isDrawn = false;
  try {
    const saved = await ask('PUT', `datastore/label?image=${encodeURIComponent(series)}`, form);
    submitted = { series, version: saved.version };
  } catch (error) {
    isDrawn = true;
    throw error;
  }
  const count = await ask('GET', 'datastore/').catch(() => undefined);
  const sum = count ? `: ${count.completed} of ${count.total} images are labelled` : '';
  const but = against(found);
  say(`Label counted${sum}.${but ? ` ${but}` : ''}`, but ? 'bad' : 'good');
}

/** The server takes voxels without a header, so their order must be the one that it expects. */
function checkOrder(array, volume, place) {
  const [first, last] = [place[0], place[place.length - 1]];
  const [r, c] = [first.rowCosines, first.columnCosines];
  const normal = [r[1] * c[2] - r[2] * c[1], r[2] * c[0] - r[0] * c[2], r[0] * c[1] - r[1] * c[0]];
  const way = normal.reduce((sum, n, i) => sum + n * (last.imagePositionPatient[i] - first.imagePositionPatient[i]), 0);
  const [columns, rows, slices] = volume.dimensions;
  const isExpected = columns === first.columns && rows === first.rows && slices === place.length && way > 0;
  if (!isExpected || array.length !== columns * rows * slices) {
    throw new Failure(`This release of OHIF orders its voxels in a way that the server does not know; ${INSTEAD}.`);
  }
}

/** What the committee says of the image beside the segmentation, which it makes once for both requests. */
async function tellVolumes() {
  const { series } = drawing();
  const params = JSON.stringify({ client_id: CLIENT });
  const said = await ask('POST', `infer/${MODEL}?image=${encodeURIComponent(series)}&output=json`, asForm({ params }));
  const ml = value => value.toFixed(2);
  const volumes = Object.entries(said.volumes).map(
    ([name, one]) => `${name} ${ml(one.ml)} ml (${ml(one.lowest)} to ${ml(one.highest)})`,
  );
  const isUnlike = said.unlike_labelled?.unlike;
  say(`${volumes.join(', ')}.${isUnlike ? ` ${said.unlike_labelled.words}` : ''}`, isUnlike ? 'bad' : '');
}

// The next sample

/** The strategy that the panel's drop-down shows; ours, which the server lists first, until another is chosen. */
async function strategy() {
  return recall('strategy') ?? Object.keys((await info()).strategies)[0];
}

async function next() {
  // Asked before the server is: it takes the next request to mean that this image is skipped.
  mayGoOn();
  const before = strokes;
  const sample = await ask('POST', `activelearning/${encodeURIComponent(await strategy())}`, { client_id: CLIENT });
  if (!sample.SeriesInstanceUID) {
    throw new Failure('There is no image left for you: all are labelled, flagged, or in the hands of somebody else.');
  }
  if (strokes > before) { // drawn while the server was asked
    mayGoOn();
  }
  isDrawn = false;
  remember('why', JSON.stringify([sample.SeriesInstanceUID, sample.why ?? '']));
  // Only this series: OHIF would show the study's first one, whatever it is told to begin with.
  // The study comes last, because the panel's own code replaces what stands last.
  const query = `SeriesInstanceUIDs=${sample.SeriesInstanceUID}&StudyInstanceUIDs=${sample.StudyInstanceUID}`;
  location.assign(`${SERVER}ohif${MODE}?${query}`);
}

function mayGoOn() {
  if (isDrawn && !window.confirm('Go on without submitting what you have drawn?')) {
    throw new Failure('Your drawing is still here: submit it, or go on without it.');
  }
}
