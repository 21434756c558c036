// Where the committee is unsure: a segmentation of its own over the image, which no brush and no label touches.

const DOUBT = 'svgd-doubt';
const DOUBTS = { unsure: ['Yellow', [255, 221, 51, 255]], 'very unsure': ['red', [255, 77, 77, 255]] };

const isDoubtShown = () => Boolean(service('segmentationService', 'getSegmentation')(DOUBT));

async function toggleDoubt() {
  if (isDoubtShown()) {
    service('segmentationService', 'remove')(DOUBT);
    say('');
    return;
  }
  const { volume, series, place } = drawing();
  ofShown(series);
  say('Asking the committee where it is unsure …');
  const answer = await ask('POST', `infer/svgd_uncertainty?image=${encodeURIComponent(series)}&output=all`, asForm({
    params: JSON.stringify({ result_extension: '.nrrd', result_compress: false, client_id: CLIENT }),
  }));
  const said = JSON.parse(answer.get('params'));
  const bands = await nrrdVoxels(answer.get('image'));
  checkOrder(bands, volume, place);
  await overlay(bands, said.label_names);
  const names = Object.entries(DOUBTS).map(([name, [colour]]) => `${colour}: ${name}`).join(', ');
  const first = said.look_first;
  if (first) {
    lookAt(first.position);
  }
  say(first ? `${names}. Most of it: ${first.words.split(';')[0]}.` : 'The committee is sure of this image everywhere.');
}

/** The voxels of an NRRD file that is not compressed: all that stands behind the empty line. */
async function nrrdVoxels(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const end = bytes.findIndex((byte, at) => byte === 10 && bytes[at + 1] === 10);
  return bytes.subarray(end + 2);
}

async function overlay(bands, values) {
  const viewports = Array.from(service('viewportGridService', 'getState')().viewports.values());
  const displayed = service('displaySetService', 'getDisplaySetByUID')(viewports[0].displaySetInstanceUIDs[0]);
  const named = Object.entries(values).map(([label, segmentIndex]) => [segmentIndex, { label, segmentIndex }]);
  const segments = Object.fromEntries(named);
  const options = { segmentationId: DOUBT, label: 'Where the committee is unsure', segments };
  await service('segmentationService', 'createLabelmapForDisplaySet')(displayed, options);
  for (const { viewportId } of viewports) {
    await service('segmentationService', 'addSegmentationRepresentation')(viewportId, { segmentationId: DOUBT });
    for (const [name, value] of Object.entries(values)) {
      service('segmentationService', 'setSegmentColor')(viewportId, DOUBT, value, DOUBTS[name][1]);
    }
    service('segmentationService', 'setActiveSegmentation')(viewportId, SEGMENTATION); // brushes go on with the drawing
  }
  put(DOUBT, service('segmentationService', 'getLabelmapVolume')(DOUBT), bands);
}

/** All planes go to a place, in RAS millimetres. */
function lookAt([right, front, up]) {
  for (const id of service('viewportGridService', 'getState')().viewports.keys()) {
    const viewport = service('cornerstoneViewportService', 'getCornerstoneViewport')(id);
    viewport?.jumpToWorld?.([-right, -front, up]);
    viewport?.render?.();
  }
}
