// The bar below the images, and how it goes along with MONAI Label's panel.

// MONAI Label's panel

const panel = () => document.querySelector('.monaiLabelPanel');
const isConnected = () => Boolean(panel()?.querySelector('.tabs'));

function onClick(event) {
  if (isDrawn && event.target.closest?.('[data-cy=return-to-work-list]')) {
    // OHIF would change its page without loading one, of which the browser would not ask.
    event.preventDefault();
    event.stopImmediatePropagation();
    location.assign(`${SERVER}ohif/`);
    return;
  }
  const button = event.target.closest?.('.monaiLabelPanel button');
  if (button?.textContent.trim() === 'Next Sample') {
    // The panel would ask for 'random' whatever its drop-down shows, and show the study's first series.
    event.preventDefault();
    event.stopImmediatePropagation();
    act(next);
  } else if (button?.closest('.settingsTable') && isConnected()) {
    event.preventDefault();
    event.stopImmediatePropagation(); // a second connection would make an empty drawing in place of this one
    say('The panel is connected with this server.');
  } else if (button?.closest('.settingsTable, .modelSelector') && isConnected()) {
    attempt(keep); // what is drawn is about to be replaced
    if (button.closest('.modelSelector')?.querySelector('select')?.value === MODEL) {
      attempt(tellVolumes);
    }
  }
}

let here = []; // what the browser's history holds of this page
/** The browser's "Back" to a page of OHIF that is shown without loading one: asked for here. */
function onPopState(event) {
  if (!isDrawn || isOpen()) {
    return;
  }
  event.stopImmediatePropagation();
  if (window.confirm('Leave without submitting what you have drawn?')) {
    isDrawn = false;
    location.reload();
  } else {
    history.pushState(here[0], '', here[1]);
  }
}

/** Another address, or one that is none and would end the whole page, never reaches the panel. */
function onFocusOut(event) {
  if (event.target.id === 'monailabelServerURL' && event.target.value !== SERVER) {
    event.target.value = SERVER;
    say('This page works with the server that it came from: its address is back in the box.');
  }
}

function onChange(event) {
  if (isStrategies(event.target)) {
    remember('strategy', event.target.value);
  }
}

const isStrategies = element =>
  element.matches?.('.monaiLabelPanel select') && Array.from(element.options).some(one => one.value === 'random');

/** Makes the drop-down show what will be asked for. */
async function showStrategy() {
  const select = Array.from(document.querySelectorAll('.monaiLabelPanel select')).find(isStrategies);
  if (select && !select.dataset.svgd) {
    select.dataset.svgd = 'yes';
    select.value = await strategy();
  }
}

let hasTried = false;
/** Presses the panel's own button as soon as the image is there: each next sample loads the page anew. */
function connect() {
  const button = panel()?.querySelector('.settingsTable button');
  if (button && !isConnected() && !hasTried && isImageLoaded()) {
    hasTried = true;
    button.click();
  }
}

/** All planes show the image: before that, OHIF would lose the segmentation that the panel adds to them. */
function isImageLoaded() {
  const { viewports, activeViewportId } = service('viewportGridService', 'getState')();
  const shown = service('cornerstoneViewportService', 'getCornerstoneViewport');
  if (Array.from(viewports.keys()).some(id => shown(id)?.viewportStatus !== 'rendered')) {
    return false;
  }
  const displayed = viewports.get(activeViewportId)?.displaySetInstanceUIDs?.[0];
  const volumes = Array.from(window.cornerstone?.cache?._volumeCache?.entries?.() ?? []);
  return Boolean(displayed) && volumes.some(([id, one]) => id.includes(displayed) && one.volume?.loadStatus?.loaded);
}

// The bar

const bar = {};

const STYLE = `
  #svgd-bar { position: fixed; inset: auto 0 0 0; z-index: 40; min-height: 48px; display: flex; flex-wrap: wrap;
    align-items: center; gap: 8px; padding: 6px 12px; background: #041c4a; border-top: 1px solid #5acce6; color: #fff;
    font: 14px/1.3 Inter, system-ui, sans-serif; }
  #svgd-bar[hidden] { display: none; }
  #svgd-bar button, #svgd-bar select { font: inherit; color: #fff; background: #0b2f75; border: 1px solid #5acce6;
    border-radius: 6px; padding: 5px 12px; cursor: pointer; }
  #svgd-bar button[aria-pressed=true], #svgd-bar button.main { background: #5acce6; color: #04122e; font-weight: 600; }
  #svgd-bar button[aria-disabled=true] { opacity: .5; cursor: default; }
  #svgd-bar :focus-visible { outline: 3px solid #fff; outline-offset: 2px; }
  #svgd-bar label { display: flex; align-items: center; gap: 6px; }
  #svgd-bar input { width: 90px; height: 20px; padding: 0; appearance: auto; background: none; accent-color: #5acce6; }
  #svgd-bar .mm { min-width: 3em; }
  #svgd-bar output { flex: 1 1 240px; }
  #svgd-bar output.good { color: #7df0a8; }
  #svgd-bar output.bad { color: #ffb4a8; }
  [data-sonner-toaster][data-y-position=bottom] { bottom: calc(var(--svgd-bar, 0px) + 16px) !important; }`;

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function build() {
  const button = (text, onclick, properties) =>
    element('button', { type: 'button', textContent: text, onclick, ...properties });
  bar.Brush = button('Brush', () => attempt(() => choose('Brush')));
  bar.Eraser = button('Eraser', () => attempt(() => choose('Eraser')));
  bar.size = element('input', { type: 'range', min: 1, max: 30, value: 3, oninput: () => attempt(resize) });
  bar.millimetres = element('span', { className: 'mm' });
  bar.segment = element('select', { onchange: () => attempt(chooseSegment) });
  bar.undo = button('Undo', () => attempt(undo));
  bar.doubt = button('Where unsure', () => act(toggleDoubt));
  bar.submit = button('Submit label', () => act(submit), { className: 'main' });
  bar.next = button('Next sample', () => act(next));
  bar.said = element('output', {});
  bar.all = element('div', { id: 'svgd-bar', hidden: true },
    bar.Brush, bar.Eraser, element('label', {}, 'Size', bar.size, bar.millimetres),
    element('label', {}, 'Segment', bar.segment), bar.undo, bar.doubt, bar.submit, bar.next,
    bar.said);
  bar.all.setAttribute('role', 'region');
  bar.all.setAttribute('aria-label', 'Annotation');
  // OHIF's shortcuts would take the keys that move a slider or press a button.
  bar.all.addEventListener('keydown', event => event.stopPropagation());
  document.head.append(element('style', { textContent: STYLE }));
  document.body.append(bar.all);
}

function say(sentence, kind = '') {
  bar.said.textContent = sentence;
  bar.said.className = kind;
}

function report(error) {
  console.error(error);
  const own = error instanceof Failure;
  say(own ? error.message : `That did not work in this release of OHIF (${error.message}). Nothing is lost.`, 'bad');
}

/** Runs what a button stands for, and says what went wrong. */
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    report(error);
  }
}

/** Not the attribute "disabled", with which a button loses the keyboard. */
const able = (button, isAble) => button.setAttribute('aria-disabled', String(!isAble));

let isBusy = false;
/** The same for what asks the server, one at a time; drawing goes on meanwhile. */
async function act(work) {
  if (isBusy) {
    say('The server has not answered yet: wait a moment.');
    return;
  }
  isBusy = true;
  const waiting = [bar.submit, bar.next, bar.doubt];
  waiting.forEach(button => able(button, false));
  await attempt(work);
  isBusy = false;
  waiting.forEach(button => able(button, true));
}

const isOpen = () => location.pathname.includes(MODE);

/** Leaves the bar its own place below the images, where OHIF's page can be made lower. */
function makeRoom() {
  const page = document.querySelector('#root [style*="100vh"]:not([data-svgd])');
  if (page?.contains(panel())) {
    page.dataset.svgd = 'yes';
    page.style.height = `calc(${page.style.height} - ${bar.all.offsetHeight}px)`;
  }
}

let labels;
let opened = 0;
let paintAt = 0;
/** Keeps the bar in step with OHIF, which tells nobody of its changes of page, tool or segment. */
async function follow() {
  bar.all.hidden = !isOpen();
  if (bar.all.hidden) {
    opened = paintAt = undoable.length = 0;
    hasTried = isDrawn = false;
    bar.segment.replaceChildren();
    return;
  }
  here = [history.state, location.href];
  opened ||= Date.now();
  if (!window.services && Date.now() - opened > 30000) {
    throw new Failure(`This release of OHIF keeps its tools from this page; ${INSTEAD}.`);
  }
  if (!window.services || !panel()) {
    return;
  }
  makeRoom();
  document.body.style.setProperty('--svgd-bar', `${bar.all.offsetHeight}px`); // OHIF's messages stay above it
  connect();
  await showStrategy();
  const tool = activeTool();
  for (const [name, toolName] of Object.entries(TOOLS)) {
    bar[name].setAttribute('aria-pressed', String(tool === toolName));
  }
  able(bar.undo, undoable.length);
  bar.doubt.setAttribute('aria-pressed', String(isDoubtShown()));
  const segmentation = service('segmentationService', 'getSegmentation')(SEGMENTATION);
  if (!segmentation) {
    return;
  }
  labels ??= (await info()).labels;
  const offered = structures(segmentation, labels);
  if (bar.segment.options.length !== offered.length) {
    bar.segment.replaceChildren(...offered.map(([value, name]) => element('option', { value, textContent: name })));
    greet();
    paintAt = Date.now() + 1500; // after the panel, whose colours are often too dark to be seen
  }
  const active = offered.find(([index]) => segmentation.segments[index].active);
  if (active) {
    bar.segment.value = active[0];
  } else { // the panel begins with the first of all models' labels, which need not be one of the task's
    chooseSegment();
  }
  if (paintAt && Date.now() > paintAt) {
    paint(offered);
    paintAt = 0;
  }
}

/** What the bar shows is what brushes draw. */
function chooseSegment() {
  service('segmentationService', 'setActiveSegment')(SEGMENTATION, Number(bar.segment.value));
}

/** Says once why this image was proposed, and takes a brush that fits it. */
function greet() {
  const { volume, series } = drawing();
  const [proposed, why] = JSON.parse(recall('why') ?? '[]');
  say(proposed === series && why ? why : 'Run the segmentation, correct it with brush and eraser, then submit.');
  const sides = volume.dimensions.map((n, i) => n * volume.spacing[i]);
  bar.size.value = Math.min(...sides) / 15;
  resize();
  attempt(() => takeHold(series));
}

/** The colours of the DICOM SEGs that the server makes: by the structure's place in the task. */
function paint(offered) {
  const set = service('segmentationService', 'setSegmentColor');
  for (const [index, name] of offered) {
    const hue = (labels.indexOf(name) * 0.61803398875) % 1;
    const channel = n => 230 * (1 - 0.75 * Math.max(0, Math.min((n + hue * 6) % 6, 4 - ((n + hue * 6) % 6), 1)));
    for (const viewport of service('viewportGridService', 'getState')().viewports.keys()) {
      set(viewport, SEGMENTATION, index, [channel(5), channel(3), channel(1), 255]);
    }
  }
}

function start() {
  build();
  window.addEventListener('click', onClick, true);
  window.addEventListener('focusout', onFocusOut, true);
  window.addEventListener('change', onChange, true);
  window.addEventListener('pointerdown', beforeStroke, true);
  window.addEventListener('beforeunload', event => {
    if (isDrawn) {
      event.preventDefault(); // the browser asks whether to leave
    }
  });
  let last = '';
  const again = async () => {
    try {
      await follow();
      last = '';
    } catch (error) {
      if (error.message !== last) {
        report(error);
      }
      last = error.message;
    }
    setTimeout(again, 500);
  };
  again();
}

window.addEventListener('popstate', onPopState, true); // before OHIF's own
document.addEventListener('DOMContentLoaded', start);
