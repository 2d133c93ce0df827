"use strict";
/* The runs of a folder side by side. */

class FolderPage {}
